"""Markers and the shared data. `real` needs FACESYNTH_TEST_DATA, `gpu` a CUDA device, `slow` the flag --slow."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

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
