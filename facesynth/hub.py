"""The Hugging Face Hub: weights fetched by hf://org/name, and trainings pushed where that is asked for.

All of it goes through huggingface_hub, which reads HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from facesynth import console
from facesynth.console import FacesynthError, UsageError, did_you_mean, printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf://"
DIGEST_MARK = "#sha256="
DEFAULT_FILE = "model.safetensors"
FORM = "hf://ORG/NAME[@REVISION][/FILE]"

# A revision holds no slash but for pull requests and conversions; one that does is written with %2F, as huggingface_hub does.
_SPEC = re.compile(
    r"hf://(?P<repository>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/pr/\d+|refs/convert/[^/]+|[^/]*))?"
    r"(?:/(?P<file>.*))?"
)


class HubError(FacesynthError):
    """The Hub did not give or take what it was asked to."""


@dataclass(frozen=True)
class HubFile:
    """A file of a model repository on the Hub, at a revision: a branch, a tag or a commit; None is its main branch."""

    repository: str
    revision: str | None = None
    file: str = DEFAULT_FILE

    def __str__(self) -> str:
        revision = self.revision or ""
        written = revision if revision.startswith("refs/") else quote(revision, safe="")
        return PREFIX + self.repository + f"@{written}" * bool(written) + f"/{self.file}" * (self.file != DEFAULT_FILE)


def parse(spec: str) -> HubFile:
    """Read hf://org/name[@revision][/file]; the file may lie in folders. Raises UsageError that says what is wrong."""
    found = _SPEC.fullmatch(spec)
    if not found:
        raise _malformed(spec, "it names no repository, which is an organisation or a user, a slash, and a name")
    revision, file = found["revision"], found["file"]
    if revision == "":
        raise _malformed(spec, "the revision after @ is empty")
    if file is not None and any(part in ("", ".", "..") for part in file.split("/")):
        raise _malformed(spec, f"'{file}' names no file inside the repository")
    problem = _name_problem(found["repository"])
    if problem:
        raise _malformed(spec, problem)
    return HubFile(found["repository"], unquote(revision) if revision else None, file or DEFAULT_FILE)


def _malformed(spec: str, why: str) -> UsageError:
    return UsageError(f"{printable(spec)}: {why}; write {FORM}.")


def _name_problem(repository: str) -> str | None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not in __all__

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        return str(error).rstrip(".")
    return None


def _client() -> HfApi:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # as above

    if console.is_quiet():
        disable_progress_bars()
    return HfApi()


# --- in ---------------------------------------------------------------------------------------------------------------


def download(spec: str) -> Path:
    """The local file that an hf:// spec names: from the cache, else from the Hub.

    Raises UsageError for a malformed spec, and HubError that says whether repository, revision or file is missing, access
    is refused, the file is not cached and HF_HUB_OFFLINE is set, or nobody answered.
    """
    wanted = parse(spec)
    client = _client()
    try:
        return Path(client.hf_hub_download(wanted.repository, wanted.file, revision=wanted.revision))
    except (
        Exception
    ) as error:  # the client raises many kinds, some of other libraries; all mean that the file did not come
        raise HubError(f"{printable(spec)}: {_why_not_fetched(wanted, error, client)}.") from error


def pin(spec: str, path: Path | None = None) -> str:
    """`spec` with the commit that its revision stands for now, so that it names the same bytes from here on.

    `path` is what `download` gave, if it was called already.
    """
    wanted = parse(spec)
    path = path or download(spec)
    commit = path.parents[wanted.file.count("/")].name  # the cache keeps a folder of files for each commit
    return str(HubFile(wanted.repository, commit, wanted.file))


def is_pin(pinned: HubFile, wanted: HubFile) -> bool:
    """Whether one is the other at a commit: at that which it names, or, where it names none, at any."""
    if (pinned.repository, pinned.file) != (wanted.repository, wanted.file):
        return False
    named = wanted.revision is not None and re.fullmatch("[0-9a-f]{40}", wanted.revision)
    return pinned.revision == wanted.revision if named else True


def _why_not_fetched(wanted: HubFile, error: Exception, client: HfApi) -> str:
    from huggingface_hub import constants, errors

    repository = wanted.repository
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it is not cached, and this kept the client from asking the Hub
    match error:
        case errors.OfflineModeIsEnabled():
            return (
                f"it is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it; unset that, point "
                "HF_HOME at a cache that holds it, or give the path of a file"
            )
        case errors.GatedRepoError():
            return (
                f"the owners of {repository} let in who asks: ask at {client.endpoint}/{repository}, then set HF_TOKEN to a "
                "token of yours"
            )
        case errors.RevisionNotFoundError():
            return (
                f"{repository} has no revision '{printable(wanted.revision)}'; give a branch, tag or commit of "
                f"{client.endpoint}/{repository}/commits"
            )
        case errors.EntryNotFoundError():
            return f"{repository} has no file '{printable(wanted.file)}'{_other_files(wanted, client)}"
        case errors.RepositoryNotFoundError():
            return (
                f"there is no repository {repository}, or it is private; check the name, or set HF_TOKEN to a token that "
                "may read it"
            )
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"the Hub refuses the token that it was sent; set HF_TOKEN to one that may read {repository}"
        case _:
            return (
                f"could not be fetched from {client.endpoint} ({_first_line(error)}); check the network, or give the path of "
                "a file"
            )


def _other_files(wanted: HubFile, client: HfApi) -> str:
    """What could have been meant: the nearest name in the repository, or all weights that it has."""
    try:
        names = client.list_repo_files(wanted.repository, revision=wanted.revision)
    except Exception:  # a hint alone: where there is none, the error is still said
        names = []
    held = [name for name in names if name.endswith((".safetensors", ".onnx"))]
    hint = did_you_mean(wanted.file, held).removesuffix("?")
    if hint:
        return f".{hint}? Write {FORM}"
    return f"; it holds {', '.join(held) or 'no weights'}; write {FORM}"


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split("\n\n")[0].split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- out --------------------------------------------------------------------------------------------------------------


class Destination:
    """A model repository of the user's, to push to. What can be wrong is found out before there is anything to push."""

    def __init__(self, repository: str, private: bool = False) -> None:
        """Check name and token; nothing is changed on the Hub.

        Raises UsageError for a name that cannot be one, and HubError where there is no token that the Hub knows.
        """
        repository = repository.removeprefix(PREFIX)
        problem = _name_problem(repository) or ("" if "/" in repository else "it names no organisation or user")
        if problem:
            raise UsageError(f"--push-to-hub {printable(repository)}: {problem}; write ORG/NAME.")
        self.repository, self.private = repository, private
        self._client = _client()
        try:
            self._client.whoami()
        except Exception as error:  # see download
            raise HubError(f"cannot push to {repository}: {self._why_not(error)}.") from error

    @property
    def url(self) -> str:
        """Where a browser shows it."""
        return f"{self._client.endpoint}/{self.repository}"

    def create(self) -> None:
        """Make the repository unless it is there, which proves that the token may write.

        Raises UsageError where it is to be private but is public already, and HubError where it cannot be made.
        """
        try:
            self._client.create_repo(self.repository, private=self.private or None, exist_ok=True)
            public = not self._client.model_info(self.repository).private
        except Exception as error:  # see download
            raise HubError(f"cannot push to {self.repository}: {self._why_not(error)}.") from error
        if self.private and public:
            raise UsageError(
                f"--private: {self.repository} exists already and is public; make it private at {self.url}/settings, or "
                "choose another name."
            )

    def push(self, files: Mapping[str, Path | bytes], message: str) -> str:
        """Upload `files` (name in the repository → content) in one commit; returns hf://org/name@commit.

        Raises HubError; what was not committed is not seen by anybody.
        """
        from huggingface_hub import CommitOperationAdd

        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        try:
            commit = self._client.create_commit(self.repository, additions, commit_message=message)
        except Exception as error:  # see download
            raise HubError(f"cannot push to {self.repository}: {self._why_not(error)}.") from error
        return str(HubFile(self.repository, commit.oid))

    def _why_not(self, error: Exception) -> str:
        from huggingface_hub import errors

        tokens = f"with write access from {self._client.endpoint}/settings/tokens"
        match error:
            case errors.OfflineModeIsEnabled():
                return "HF_HUB_OFFLINE forbids it; unset that"
            case errors.LocalTokenNotFoundError():
                return f"there is no token; set HF_TOKEN to one {tokens}"
            case errors.HfHubHTTPError() if error.response.status_code == 401:
                return f"the Hub does not know the token; set HF_TOKEN to one {tokens}"
            case errors.HfHubHTTPError() if error.response.status_code == 403:
                return f"the token may not write there; choose a namespace of yours, or set HF_TOKEN to one {tokens}"
            case _:
                return f"{_first_line(error)}; check the network and {self._client.endpoint}"
