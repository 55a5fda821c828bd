"""Markers and the shared data. `real` needs FACESYNTH_TEST_DATA, `gpu` a CUDA device, `slow` the flag --slow."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faces import write_tree

DATA = os.environ.get("FACESYNTH_TEST_DATA")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = {
        "real": None if DATA and Path(DATA).is_dir() else "FACESYNTH_TEST_DATA is unset or no folder",
        "slow": None if config.getoption("--slow") else "run with --slow",
        "gpu": None if not any("gpu" in item.keywords for item in items) or _has_gpu() else "no CUDA device",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of shared data, for tests marked `real`."""
    assert DATA is not None, "mark the test `real`"
    return Path(DATA)


@pytest.fixture(scope="session")
def fer2013(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER2013 as folders, unpacked if it comes packed."""
    return _unpacked(test_data, "fer2013", tmp_path_factory)


@pytest.fixture(scope="session")
def pack(test_data: Path) -> Path:
    """A model pack as insightface has it."""
    return test_data / "models" / "insightface" / "models" / "facepack"


@pytest.fixture(scope="session")
def lfw350(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LFW faces with expressions at 350x350 as folders, unpacked if they come packed."""
    return _unpacked(test_data, "lfw350", tmp_path_factory)


def _unpacked(data: Path, name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (data / "data" / name).is_dir():
        return data / "data" / name
    packed = data / "data" / f"{name}.tar"
    if not packed.is_file():
        pytest.skip(f"{packed} is missing")
    folder = tmp_path_factory.mktemp("data")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    return folder / name


@dataclass(frozen=True)
class Tiny:
    """Weights that are made in seconds, in a folder that can stand in for the built-in ones."""

    folder: Path
    classes: tuple[str, ...] = ("happy", "neutral", "surprise")

    @property
    def judge(self) -> Path:
        return self.folder / "judge-48.safetensors"

    @property
    def editor(self) -> Path:
        return self.folder / "editor-48.safetensors"

    @property
    def embedder(self) -> Path:
        return self.folder / "embedder-48.safetensors"

    @property
    def script(self) -> Path:
        """The command line on these weights, also in the processes that it starts."""
        return self.folder / "command.py"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn faces to train on."""
    return write_tree(tmp_path_factory.mktemp("drawn") / "faces", dict.fromkeys(Tiny.classes, 60))


@pytest.fixture(scope="session")
def tiny(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A judge that accepts what it reads halfway surely, an embedder, and an editor with random edits of visible size.

    Random weights edit without minutes of training, and about one result in five fails a gate.
    """
    import torch

    from facesynth import train, weights
    from facesynth.generators.networks import Editor

    made = Tiny(tmp_path_factory.mktemp("weights"))
    common: dict[str, Any] = {"precision": "fp32", "device": "cpu", "learning_rate": 0.02}
    network: dict[str, Any] = {"width": 8, "dropout": 0.0}
    out = made.folder / "judge"
    judge = weights.load(
        str(train(drawn, "judge-48", out, images=2400, batch_size=40, network=network, **common).weights)
    )
    judge.info.update(temperature=8.0, thresholds=dict.fromkeys(made.classes, 0.2))
    weights.save(made.judge, "classifier", judge.module, judge.info)
    network = {"width": 8, "size": 16}
    out = made.folder / "embedder"
    train(drawn, "embedder-48", out, images=400, batch_size=40, network=network, **common).weights.rename(made.embedder)
    torch.manual_seed(0)
    editor = Editor(list(made.classes), style=2, channels=(16, 16, 16))
    with torch.no_grad():
        editor.flow.weight.normal_(0, 0.2)
        editor.paint2.bias[0] = -6  # hardly any paint: moved pixels stay as sharp as they are
    weights.save(made.editor, "editor", editor, {"classes": list(made.classes)})
    made.script.write_text(
        "import pathlib\nfrom facesynth import cli, weights\n"
        f"weights._FOLDER = pathlib.Path({str(made.folder)!r})\n"
        "if __name__ == '__main__':\n    cli.main()\n"
    )
    return made


@pytest.fixture(scope="session")
def tiny_generator(drawn: Path, tiny: Tiny) -> Path:
    """A conditional generator of blurred faces: each drawn face is fitted by noise of its own, and others lie between."""
    import torch
    from PIL import Image

    from facesynth import weights
    from facesynth.generators.latent import Generator

    files = [path for label in tiny.classes for path in sorted((drawn / label).iterdir())]
    faces = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in files]))[:, None] / 127.5 - 1
    labels = torch.arange(len(tiny.classes)).repeat_interleave(len(files) // len(tiny.classes))
    torch.manual_seed(0)
    generator = Generator("conv-48", list(tiny.classes), latent=24, conditional=True, width=8)
    noise = torch.randn(len(files), generator.latent)
    optimizer = torch.optim.Adam(generator.parameters(), 0.02)
    for _ in range(120):
        pick = torch.randint(len(files), (60,))
        loss = (generator(noise[pick], labels[pick]) - faces[pick]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tiny.folder / "drawing" / "tiny-gan.safetensors"
    weights.save(path, "generator", generator.eval(), {"classes": list(tiny.classes)})
    return path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def facesynth(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """The command line in this process, with the tiny weights for built-in ones."""
    from facesynth import cli, console, weights

    monkeypatch.setattr(weights, "_FOLDER", tiny.folder)

    def command(*arguments: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["facesynth", *map(str, arguments)])
        monkeypatch.setattr(console._State, "said", set())  # each command is a process of its own
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capsys.readouterr())

    yield command
    console.set_quiet(False)
