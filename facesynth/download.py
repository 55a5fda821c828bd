"""What every download of weights has in common: it may be forbidden, it may fail, and nobody waits for a dead line."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from facesynth.console import FacesynthError

TIMEOUT_SECONDS = 5


@contextmanager
def fetching(url: str, missing: str, advice: str, error: type[FacesynthError] = FacesynthError) -> Iterator[None]:
    """Around a download from `url` by a library that knows no time-out itself.

    Raises `error`, which says what is `missing`, why it did not come, and the `advice`: at once where HF_HUB_OFFLINE
    forbids downloads, within seconds where nobody answers, and for whatever the download raises.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise error(f"{missing}, and HF_HUB_OFFLINE forbids to fetch any. {advice}")
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()  # noqa: S310
        yield
    except Exception as cause:  # of several libraries; all mean that the weights did not come
        why = f"{type(cause).__name__}: {cause}"
        raise error(f"{missing}, and they could not be fetched ({why}). {advice}") from cause
