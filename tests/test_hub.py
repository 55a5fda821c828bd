"""Weights on the Hugging Face Hub: the real client against a small Hub on this machine."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ended, Tiny
from faces import write_tree
from hubserver import TOKEN, Hub
from huggingface_hub import ModelCard, constants

from facesynth import hub, modelcard, train, weights
from facesynth.console import FacesynthError, UsageError
from facesynth.hub import HubError
from facesynth.identity import open_embedder
from facesynth.weights import WeightsError

SMALL = "recipe: judge\nimages: 12\nbatch_size: 6\nnetwork: {width: 4}\ndevice: cpu\n"
NO_DIGEST = "0" * 64


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as served:
        yield served


@pytest.fixture
def here(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The client of this process, which has read its environment already, talks to the server and caches in tmp_path."""
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A preset that trains in a second."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def environment(server: Hub, home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return kept | own | {"NO_PROXY": "127.0.0.1,localhost"} | more


def command(*arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", "from facesynth.cli import main; main()", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False, timeout=600, **settings)


def loaded(specs: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Name and digest of weights as another process loads them."""
    program = (
        "import json, sys; from facesynth import weights; found = [weights.load(s) for s in sys.argv[1:]]; "
        "print(json.dumps([[w.name, w.digest] for w in found]))"
    )
    call = [sys.executable, "-c", program, *specs]
    return subprocess.run(call, capture_output=True, text=True, check=False, timeout=600, env=env)


# --- there and back ---------------------------------------------------------------------------------------------------


def test_a_training_is_pushed_and_loaded_back_also_offline(
    server: Hub, drawn: Path, small: Path, tmp_path: Path
) -> None:
    out, home = tmp_path / "run", tmp_path / "home"
    flags = ("--preset", small, "--out", out, "--push-to-hub", "someone/tiny", "--private", "--json")
    ended = command("train", drawn, *flags, env=environment(server, home, HF_TOKEN=TOKEN))
    assert ended.returncode == 0, ended.stderr
    repository = server.repositories["someone/tiny"]
    (commit,) = repository.commits
    pushed = json.loads(ended.stdout)["pushed"]
    assert pushed == f"hf://someone/tiny@{commit}"
    assert repository.private
    assert set(repository.commits[commit]) == {"README.md", "losses.png", "model.safetensors", "settings.json"}
    data = (out / "model.safetensors").read_bytes()
    assert repository.commits[commit]["model.safetensors"] == data
    digest = hashlib.sha256(data).hexdigest()
    specs = ["hf://someone/tiny", pushed, f"hf://someone/tiny#sha256={digest}", f"{pushed}#sha256={digest[:16]}"]
    there = loaded(specs, environment(server, home, HF_TOKEN=TOKEN))
    assert json.loads(there.stdout or "null") == [[pushed, digest[:16]]] * 4, there.stderr
    server.__exit__()
    offline = loaded(specs, environment(server, home, HF_HUB_OFFLINE="1"))
    assert json.loads(offline.stdout or "null") == [[pushed, digest[:16]]] * 4, offline.stderr


def test_nothing_is_sent_unasked(here: Hub, drawn: Path, small: Path, tmp_path: Path) -> None:
    result = train(drawn, str(small), tmp_path / "run")
    assert result.pushed is None
    assert here.requests == []


def test_a_name_on_the_hub_is_pinned_for_the_whole_run(
    here: Hub, tiny: Tiny, drawn: Path, tmp_path: Path, facesynth: Callable[..., Ended]
) -> None:
    commit = here.add("org/editor", {"nets/tiny.safetensors": tiny.editor.read_bytes()})
    judge = here.add("org/judge", {"model.safetensors": tiny.judge.read_bytes()})
    generators = ("--generator", "hf://org/editor/nets/tiny.safetensors", "--judge", "hf://org/judge")
    call = (
        "augment",
        drawn,
        *generators,
        "--identity",
        "off",
        "--workers",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "a",
    )
    made = facesynth(*call)
    assert made.code in (0, 3), made.err
    rows = list(csv.DictReader((tmp_path / "a/metadata.csv").open()))
    pinned = f"hf://org/editor@{commit}/nets/tiny.safetensors"
    assert {row["generator"] for row in rows} == {"", f"{pinned}@{weights.file_digest(tiny.editor)}"}
    settings = json.loads((tmp_path / "a.facesynth/run.json").read_text())
    assert (settings["generator"], settings["judge"]) == (pinned, f"hf://org/judge@{judge}")
    editor = weights.load(str(tiny.editor))
    weights.save(tmp_path / "other", "editor", editor.module, editor.info | {"note": "a later version"})
    here.add("org/editor", {"nets/tiny.safetensors": (tmp_path / "other").read_bytes()})
    again = facesynth(*call, "--on-existing", "resume")
    assert (again.code, "begun with other settings (generator" in again.err) == (2, True)


def test_an_identity_model_may_be_one_file_on_the_hub(here: Hub, tmp_path: Path) -> None:
    here.add("org/arcface", {"packs/recogniser.onnx": b"no model"})
    with pytest.raises(FacesynthError, match=r"recogniser\.onnx"):  # it came, and is told to be none
        open_embedder("auto", "hf://org/arcface/packs/recogniser.onnx")
    with pytest.raises(WeightsError, match=NO_DIGEST):
        open_embedder("auto", f"hf://org/arcface/packs/recogniser.onnx#sha256={NO_DIGEST}")
    with pytest.raises(UsageError, match=r"name one \.onnx file"):
        open_embedder("auto", "hf://org/arcface")


# --- specs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hf://org/name", hub.HubFile("org/name")),
        ("hf://org/my.model", hub.HubFile("org/my.model")),
        ("hf://org/name@v1.0", hub.HubFile("org/name", "v1.0")),
        ("hf://org/name/a/b@2.safetensors", hub.HubFile("org/name", None, "a/b@2.safetensors")),
        ("hf://org/name@main/a/b.safetensors", hub.HubFile("org/name", "main", "a/b.safetensors")),
        ("hf://org/name@refs/pr/7/b.safetensors", hub.HubFile("org/name", "refs/pr/7", "b.safetensors")),
        ("hf://org/name@feature%2Fx", hub.HubFile("org/name", "feature/x")),
    ],
)
def test_a_spec_says_repository_revision_and_file(spec: str, expected: hub.HubFile) -> None:
    assert hub.parse(spec) == expected
    assert str(expected) == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf://name", "names no repository"),
        ("hf://", "names no repository"),
        ("hf:///name", "names no repository"),
        ("hf://org/name@", "revision after @ is empty"),
        ("hf://org/name@/file", "revision after @ is empty"),
        ("hf://org/name/", "names no file"),
        ("hf://org/name/../../secret", "names no file"),
        ("hf://org/na me", "alphanumeric"),
        ("hf://org/na--me", "Cannot have -- or"),
        ("hf://org/name#sha256=12", "16 to 64 hex digits"),
        ("hf://org/name#md5=0123456789abcdef", "16 to 64 hex digits"),
        ("judge-48#sha256=xyz", "16 to 64 hex digits"),
    ],
)
def test_a_malformed_spec_is_told_how_to_write_it(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        weights.find(spec)
    assert spec in str(caught.value)


def test_a_digest_pins_paths_and_built_in_names_too(tiny: Tiny) -> None:
    digest = weights.sha256(tiny.judge)
    for given in (digest, digest.upper(), digest[:16]):
        assert weights.load(f"{tiny.judge}#sha256={given}").name == "judge-48"
    assert weights.find(f"judge-48#sha256={weights.sha256(weights.find('judge-48'))}").is_file()
    with pytest.raises(WeightsError, match=f"is {digest}, not {NO_DIGEST} as asked for; if you trust"):
        weights.load(f"{tiny.judge}#sha256={NO_DIGEST}")


# --- what can be wrong with a download --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf://org/none", "there is no repository org/none, or it is private; check the name, or set HF_TOKEN"),
        ("hf://org/private", "there is no repository org/private, or it is private; check the name, or set HF_TOKEN"),
        ("hf://org/gated", r"let in who asks: ask at http://.*/org/gated, then set HF_TOKEN"),
        ("hf://org/open@v9", "org/open has no revision 'v9'; give a branch, tag or commit"),
        ("hf://org/open/juge.safetensors", "has no file 'juge.safetensors'. Did you mean 'judge.safetensors'"),
        ("hf://org/open/x/y.bin", r"has no file 'x/y.bin'; it holds judge.safetensors, b/editor.safetensors; write hf"),
        (f"hf://org/open/judge.safetensors#sha256={NO_DIGEST}", f"not {NO_DIGEST} as asked for"),
    ],
)
def test_what_does_not_come_is_told_apart(
    spec: str, message: str, here: Hub, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    here.add("org/open", {"judge.safetensors": tiny.judge.read_bytes(), "b/editor.safetensors": b"", "README.md": b""})
    here.add("org/private", {"model.safetensors": tiny.judge.read_bytes()}, private=True)
    here.add("org/gated", {"model.safetensors": tiny.judge.read_bytes()}, gated=True)
    with pytest.raises(FacesynthError, match=message):
        weights.load(spec)


def test_a_token_opens_what_is_private(here: Hub, tiny: Tiny) -> None:
    here.add("org/private", {"model.safetensors": tiny.judge.read_bytes()}, private=True)
    assert weights.load("hf://org/private", "classifier").digest == weights.file_digest(tiny.judge)


def test_what_was_never_fetched_is_not_there_offline(
    here: Hub, drawn: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = f"not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it; unset that"
    with pytest.raises(HubError, match=message):
        weights.load("hf://org/open")
    with pytest.raises(HubError, match="cannot push to someone/tiny: HF_HUB_OFFLINE forbids it"):
        train(drawn, str(small), tmp_path / "run", push_to_hub="someone/tiny")
    assert here.requests == []


def test_a_hub_that_does_not_answer_is_named(here: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    here.__exit__()
    with pytest.raises(HubError, match=rf"could not be fetched from {here.endpoint} \(ConnectError.*check the network"):
        weights.load("hf://org/name")


# --- what can be wrong with a push ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "token", "message", "kind"),
    [
        ("name", TOKEN, "names no organisation or user; write ORG/NAME", UsageError),
        ("someone/na me", TOKEN, "alphanumeric", UsageError),
        ("someone/tiny", None, "there is no token; set HF_TOKEN to one with write access", HubError),
        ("someone/tiny", "hf_wrong", "the Hub does not know the token", HubError),
        ("stranger/tiny", TOKEN, "may not write there; choose a namespace of yours", HubError),
        ("someone/public", TOKEN, "exists already and is public; make it private at", UsageError),
    ],
)
def test_what_cannot_be_pushed_is_said_before_the_training(
    name: str, token: str | None, message: str, kind: type[FacesynthError], here: Hub, drawn: Path, small: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    here.add("someone/public", {"README.md": b""})
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind, match=message):
        train(drawn, str(small), tmp_path / "run", push_to_hub=name, private=True)
    assert not (tmp_path / "run/log.jsonl").exists()
    assert here.count("POST .*/commit/") == 0


def test_private_alone_means_nothing(drawn: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--private belongs to --push-to-hub"):
        train(drawn, str(small), tmp_path / "run", private=True)


def test_a_push_that_failed_is_made_up_for_by_one_command_without_training_again(
    here: Hub,
    drawn: Path,
    small: Path,
    tmp_path: Path,
    facesynth: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here.failing = "/commit/"
    out = tmp_path / "a run"
    ended = facesynth("train", drawn, "--preset", small, "--out", out, "--seed", 3, "--push-to-hub", "someone/tiny")
    assert ended.code == 1
    assert "HfHubHTTPError" in ended.err
    assert f"finished and kept in {out}" in ended.err
    written = {
        name: (out / name).stat().st_mtime_ns for name in ("model.safetensors", "README.md", "checkpoint-00000012.pt")
    }
    here.failing = None
    monkeypatch.setattr("facesynth.training._load", lambda *arguments: pytest.fail("the faces were read again"))
    again = facesynth(*shlex.split(ended.err.partition("That is: facesynth ")[2]))
    assert again.code == 0, again.err
    assert "finished already" in again.err
    (commit,) = here.repositories["someone/tiny"].commits
    assert f"hf://someone/tiny@{commit}" in again.err
    assert {name: (out / name).stat().st_mtime_ns for name in written} == written


# --- the card ---------------------------------------------------------------------------------------------------------


def test_a_training_leaves_a_card_that_says_what_its_weights_are(
    drawn: Path, small: Path, tmp_path: Path, tiny: Tiny
) -> None:
    result = train(drawn, str(small), tmp_path / "run")
    card = ModelCard.load(tmp_path / "run/README.md")
    assert card.data.license == "other"
    assert {"facesynth", "classifier", "small"} <= set(card.data.tags)
    assert card.data.pipeline_tag == "image-classification"
    assert weights.sha256(result.weights) in card.text
    assert f"- held out accuracy: {result.figures['held_out_accuracy']:.4g}" in card.text
    for label in tiny.classes:
        assert f"| {label} | {result.figures['held_out_recall'][label]:.4g} |" in card.text
    settings = card.text.partition("```yaml\n")[2].partition("```")[0]
    again = tmp_path / "again.yaml"
    again.write_text(settings)
    assert yaml.safe_load(settings)["network"] == {"width": 4}
    repeated = train(drawn, str(again), tmp_path / "second")
    assert weights.load(str(repeated.weights)).info["recipe"] == weights.load(str(result.weights)).info["recipe"]


def test_pictures_are_pushed_but_no_sheet_of_real_faces(here: Hub, drawn: Path, tiny: Tiny, tmp_path: Path) -> None:
    common = {"images": 12, "batch_size": 6, "device": "cpu", "push_to_hub": "someone/tiny"}
    gan = {"network": "conv-48", "condition": "label", "width": 2}
    train(drawn, "cgan-48", tmp_path / "gan", gan=gan, **common)
    files = here.repositories["someone/tiny"].files("main") or {}
    assert {"sheet-00000012.png", "losses.png"} <= set(files)
    assert b"![Samples](sheet-00000012.png)" in files["README.md"]
    assert b"--generator hf://someone/tiny\n" in files["README.md"]
    guides = {"judge": str(tiny.judge), "embedder": str(tiny.embedder)}
    network = {"style": 2, "channels": [8, 8, 8]}
    common["push_to_hub"] = "someone/editor"
    train(drawn, "editor-48", tmp_path / "editor", network=network, **guides, **common)
    assert (tmp_path / "editor/sheet-00000012.png").exists()
    files = here.repositories["someone/editor"].files("main") or {}
    assert set(files) == {"README.md", "losses.png", "model.safetensors", "settings.json"}
    assert b"real faces are on them" in files["README.md"]


def test_what_is_pushed_names_no_folder_of_this_machine(here: Hub, drawn: Path, tiny: Tiny, tmp_path: Path) -> None:
    own = tmp_path / "of-mine"
    own.mkdir()
    weights_file = shutil.copy(tiny.judge, own / "judge.safetensors")
    digest = weights.sha256(weights_file)
    more = write_tree(own / "more", {"happy": 20, "angry": 20})
    common: dict[str, Any] = {"images": 6, "batch_size": 6, "device": "cpu", "push_to_hub": "someone/tiny"}
    network = {"translator": {"network": "stargan-48", "width": 2, "critic_steps": 1}}
    train(drawn, "judge-48", own / "run", init=f"{weights_file}#sha256={digest}", **common)
    judge = here.repositories["someone/tiny"].files("main") or {}
    train(drawn, "stargan-48", own / "other", also=[str(more)], **network, **common)
    translator = here.repositories["someone/tiny"].files("main") or {}
    for files, names in (
        (judge, [b"`judge.safetensors#sha256=", b"init: judge.safetensors#"]),
        (translator, [b"- more\n"]),
    ):
        assert not [name for name, data in files.items() if b"of-mine" in data]
        assert all(name in files["README.md"] for name in names)
    assert json.loads((own / "other/settings.json").read_text())["also"] == [str(more)]  # to go on with


def test_a_card_that_its_owner_has_changed_is_pushed_as_it_is(
    here: Hub, drawn: Path, small: Path, tmp_path: Path
) -> None:
    train(drawn, str(small), tmp_path / "run")
    path = tmp_path / "run/README.md"
    path.write_text(path.read_text().replace("license: other", "license: cc-by-4.0"))
    train(drawn, str(small), tmp_path / "run", resume=True, push_to_hub="someone/tiny")
    pushed = (here.repositories["someone/tiny"].files("main") or {})["README.md"].decode()
    assert pushed == path.read_text().replace("ORG/NAME", "someone/tiny")
    assert "license: cc-by-4.0" in pushed


def test_every_kind_of_weights_has_its_card() -> None:
    assert set(modelcard.KINDS) == set(weights.NETWORKS)
