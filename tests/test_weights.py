from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny
from safetensors.torch import save_file

from facesynth import weights
from facesynth.console import FacesynthError, UsageError
from facesynth.generators.networks import Classifier
from facesynth.weights import WeightsError, load, save


def test_what_is_saved_is_loaded_in_half_precision_and_ready_to_use(tmp_path: Path) -> None:
    network = Classifier(["happy", "sad"], width=8)
    save(tmp_path / "a.safetensors", "classifier", network, {"classes": ["happy", "sad"], "note": "ä"})
    loaded = load(str(tmp_path / "a.safetensors"), "classifier")
    assert (loaded.name, loaded.kind) == ("a", "classifier")
    assert loaded.info == {"classes": ["happy", "sad"], "note": "ä"}
    assert loaded.module.config == network.config
    assert not loaded.module.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(
            loaded.module.state_dict()[name], tensor.half().float() if tensor.is_floating_point() else tensor
        )
    for name in "bcd":
        save(tmp_path / name, "classifier", loaded.module, loaded.info)
        assert (tmp_path / name).read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_the_folder_of_a_training_stands_for_its_weights(tiny: Tiny) -> None:
    (tiny.folder / "folder").mkdir(exist_ok=True)
    (tiny.folder / "folder/model.safetensors").write_bytes(tiny.editor.read_bytes())
    assert load(str(tiny.folder / "folder")).kind == "editor"


class _Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def _cut(tiny: Tiny, path: Path) -> None:
    path.write_bytes(tiny.judge.read_bytes()[:-100])


def _pickle(tiny: Tiny, path: Path) -> None:
    torch.save({"weights": _Malicious(path.with_name("marker"))}, path)


def _old_pickle(tiny: Tiny, path: Path) -> None:
    torch.save({"weights": _Malicious(path.with_name("marker"))}, path, _use_new_zipfile_serialization=False)


def _text(tiny: Tiny, path: Path) -> None:
    path.write_text("these are no weights at all")


def _empty(tiny: Tiny, path: Path) -> None:
    path.touch()


def _foreign(tiny: Tiny, path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path)


def _misfit(tiny: Tiny, path: Path) -> None:
    header = {"format": "facesynth-1", "kind": "classifier", "config": json.dumps({"classes": ["a"]}), "info": "{}"}
    save_file({"a": torch.zeros(1)}, path, header)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, "not a readable safetensors file"),
        (_pickle, "never opened because it can run code"),
        (_old_pickle, "never opened because it can run code"),
        (_text, "not a readable safetensors file"),
        (_empty, "not a readable safetensors file"),
        (_foreign, "not facesynth weights"),
        (_misfit, "do not fit"),
    ],
)
def test_a_bad_file_is_named_and_never_run(
    spoil: Callable[[Tiny, Path], None], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    spoil(tiny, path)
    with pytest.raises(WeightsError, match=message) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert not (tmp_path / "marker").exists()


def test_the_malicious_file_would_bite(tiny: Tiny, tmp_path: Path) -> None:
    _pickle(tiny, tmp_path / "w")
    torch.load(tmp_path / "w", weights_only=False)
    assert (tmp_path / "marker").is_dir()


def test_another_kind_is_told_from_a_broken_file(tiny: Tiny) -> None:
    with pytest.raises(WeightsError, match="holds a classifier"):
        load(str(tiny.judge), "editor")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("judge48", UsageError, "Did you mean 'judge-48'"),
        ("stylegan", UsageError, "Built in: editor-48, embedder-48, judge-48"),
        ("nowhere/judge.safetensors", WeightsError, "no such weights file"),
        ("gone.pt", WeightsError, "no such weights file"),
    ],
)
def test_what_is_not_there(
    spec: str, error: type[FacesynthError], message: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_FOLDER", tiny.folder)
    with pytest.raises(error, match=message):
        load(spec)


# The weights that the package brings along. These fail while there are none.


@pytest.mark.parametrize(
    ("name", "kind"), [("judge-48", "classifier"), ("editor-48", "editor"), ("embedder-48", "embedder")]
)
def test_builtin_weights_load_and_name_their_classes(name: str, kind: str) -> None:
    loaded = load(name, kind)
    if kind != "embedder":
        assert loaded.info["classes"] == ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
    assert loaded.info["images"] > 0


def test_builtin_weights_are_small() -> None:
    assert weights.builtin_names() == ["editor-48", "embedder-48", "faces-48", "judge-48"]
    assert sum(weights.find(name).stat().st_size for name in weights.builtin_names()) <= 12e6
