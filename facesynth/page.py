"""What the pages share: their look (page.html.j2), how figures are written, and how pictures go into the file."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TypeVar

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from facesynth.output import write_atomic

Item = TypeVar("Item")
Pixels = npt.NDArray[np.floating]

ABSENT = "—"
THUMBNAIL_SIDE = 192
LOSSLESS_SIDE = 64  # at this size JPEG ringing would be taken for the generator's, and PNG costs only ~2 kB


def some(items: Sequence[Item], count: int) -> list[Item]:
    """A random sample to show, the same for the same items, in their order."""
    chosen = random.Random(0).sample(range(len(items)), min(count, len(items)))
    return [items[k] for k in sorted(chosen)]


def write(path: Path, text: str) -> None:
    """Write a page to `path`, all or nothing. Raises FacesynthError when the file cannot be written."""
    # A file name that is no UTF-8 reaches us as lone surrogates: shown as \udcXX instead of ending the run.
    write_atomic(path, text.encode("utf-8", errors="backslashreplace"))


def render(template: str, **values: object) -> str:
    """A page as text, from a template of this package: styles, images and charts are inside, and it needs no network."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=_count, score=_score, percent=_percent, setting=_setting, thumbnail=_thumbnail, median=np.median
    )
    return environment.get_template(template).render(values)


def _read_template(name: str) -> str:
    return (resources.files("facesynth") / name).read_text("utf-8")


# --- text -------------------------------------------------------------------------------------------------------------


def _count(number: int) -> str:
    return f"{number:,}"


def _percent(part: float, whole: float) -> str:
    if not whole:
        return ABSENT
    share = 100 * part / whole
    if 0 < share < 1:
        return "<1%"
    return ">99%" if 99 < share < 100 else f"{share:.0f}%"


def _score(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return ABSENT
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def _setting(value: object) -> str:
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_setting(part)}" for key, part in value.items()) or ABSENT
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(part) for part in value) or ABSENT
    return str(value)


# --- pictures ---------------------------------------------------------------------------------------------------------


def _thumbnail(pixels: Pixels) -> str:
    """A data URI of the picture, at most 192 pixels on its longer side."""
    image = _to_image(pixels)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    encoding = "PNG" if max(image.size) <= LOSSLESS_SIDE else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, encoding, optimize=True, quality=88)  # PNG knows no quality and passes over it
    return f"data:{Image.MIME[encoding]};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _to_image(pixels: Pixels) -> Image.Image:
    levels = np.rint(255 * np.clip(np.nan_to_num(pixels), 0, 1)).astype(np.uint8)
    if levels.ndim == 3 and levels.shape[2] == 1:
        levels = levels[:, :, 0]
    return Image.fromarray(levels)
