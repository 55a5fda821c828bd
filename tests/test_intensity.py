"""Every editor that is told a class takes an intensity, and the expression grows with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faces import draw, new_faces, write_tree
from torch import nn

from facesynth import train, weights
from facesynth.expression import Judge, load_judge
from facesynth.generators.condition import Vocabulary
from facesynth.generators.diffusion import DiffusionEditor
from facesynth.generators.editor import FlowEditor
from facesynth.generators.networks import Editor, apply_edit, warp
from facesynth.generators.proposal import FaceEditor
from facesynth.generators.translator import TranslationEditor

PAIR = ("happy", "neutral")
FAST: dict[str, Any] = {"device": "cpu", "precision": "fp32", "seed": 3}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of two classes, with what an observer might say of their valence and arousal."""
    src = write_tree(tmp_path_factory.mktemp("pair") / "faces", dict.fromkeys(PAIR, 60))
    rng = np.random.default_rng(0)
    rows = ["file_name,valence,arousal"]
    for label, middle in ((PAIR[0], (0.8, 0.5)), (PAIR[1], (0.0, 0.1))):
        seen = (rng.normal(middle, 0.05) for _ in range(60))
        rows += [f"{label}/im{k}.png,{valence:.3f},{arousal:.3f}" for k, (valence, arousal) in enumerate(seen)]
    (src / "metadata.csv").write_text("\n".join(rows) + "\n")
    return src


@pytest.fixture(scope="module")
def judge(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """It has no part in the training of the editors."""
    network = {"width": 8, "dropout": 0.0}
    told = FAST | {"seed": 0, "images": 4000, "batch_size": 40, "learning_rate": 0.01, "network": network}
    return load_judge(str(train(pair, "judge-48", tmp_path_factory.mktemp("judge"), **told).weights))


def both() -> torch.Tensor:
    """The same people in both expressions: (200, 2, 48, 48) in [0, 1]."""
    return torch.from_numpy(np.stack([[draw(label, person) for label in PAIR] for person in range(200)])) / 255


def learn(
    network: nn.Module, repaint: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], steps: int, rate: float
) -> None:
    """Teach a network to `repaint` faces (N, 1, S, S) in [0, 1] in the target class (N,), shown how it is done.

    Half of the faces have it already.
    """
    faces = both()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    for step in range(steps):
        rng = torch.Generator().manual_seed(step)
        people, source, target = (torch.randint(n, (8,), generator=rng) for n in (len(faces), 2, 2))
        real, wanted = faces[people, source][:, None], faces[people, target][:, None]
        loss = ((repaint(real, target) - wanted).abs() * (0.1 + (wanted - real).abs())).mean()  # above all what differs
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def flow(_: Path, out: Path) -> FaceEditor:
    """An editor that moves and repaints."""
    torch.manual_seed(0)
    editor = Editor(list(PAIR), style=2, channels=(16, 16, 16))

    def repaint(real: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return apply_edit(real, editor(real, 1 - target, target, torch.zeros(len(real), 2)))

    learn(editor, repaint, 300, 3e-3)
    weights.save(out / "editor.safetensors", "editor", editor, {"classes": list(PAIR)})
    return FlowEditor(weights.load(str(out / "editor.safetensors")))


def translation(network: str, **told: Any) -> Callable[[Path, Path], FaceEditor]:
    """An editor that repaints, told a class or measures."""

    def made(pair: Path, out: Path) -> FaceEditor:
        settings = {"network": network, "width": 8, "critic_steps": 1, "measures": told.get("measures", [])}
        others = {name: value for name, value in told.items() if name != "measures"}
        short = train(pair, "stargan-48", out, **FAST, **others, images=8, batch_size=8, translator=settings)
        loaded = weights.load(str(short.weights))
        vocabulary = Vocabulary.of(loaded.info["vocabulary"])
        asked = torch.tensor([vocabulary.datasets[0][0].encode(label) for label in PAIR])

        def repaint(real: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (loaded.module(2 * real - 1, vocabulary.condition(asked[target], 0)) + 1) / 2

        torch.manual_seed(0)
        learn(loaded.module.train().requires_grad_(True), repaint, 300, 1e-3)
        weights.save(out / "taught.safetensors", "translator", loaded.module, loaded.info)
        return TranslationEditor(weights.load(str(out / "taught.safetensors")))

    return made


def diffusion(pair: Path, out: Path) -> FaceEditor:
    """An editor that paints the face anew, from more noise the more it is to change."""
    network = {"width": 16, "multiples": [1, 2], "steps": 10, "guidance": 2.0, "intensity": [0.3, 0.7]}
    told = {"images": 4000, "batch_size": 40, "learning_rate": 4e-3, "warmup_images": 400, "ema_images": 1000}
    return DiffusionEditor(
        weights.load(str(train(pair, "diffusion-48", out, **FAST, **told, diffusion=network).weights))
    )


KINDS: dict[str, Callable[[Path, Path], FaceEditor]] = {
    "flow": flow,
    "stargan": translation("stargan-48"),
    "action-units": translation("ganimation-48", action_units="prototypes"),
    "valence-arousal": translation("ganimation-48", measures=["valence", "arousal"]),
    "diffusion": diffusion,
}


def edited(editor: FaceEditor, crops: np.ndarray, source: int, target: int, intensity: float) -> np.ndarray:
    """Crops after an edit."""
    count = len(crops)
    draws = [np.random.default_rng(k) for k in range(count)]
    edits = editor.propose(crops, [source] * count, [target] * count, draws, np.full(count, intensity, np.float32))
    moved = crops
    if edits.flow is not None:
        half_sides = torch.from_numpy(edits.flow / (crops.shape[-1] / 2))
        moved = warp(torch.from_numpy(crops)[:, None], half_sides)[:, 0].numpy()
    return (moved + edits.difference).clip(0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_probability_of_the_target_rises_with_the_intensity(
    kind: str, pair: Path, judge: Judge, tmp_path: Path
) -> None:
    editor = KINDS[kind](pair, tmp_path / "out")
    assert editor.classes == judge.classes == list(PAIR)
    for source, target in ((1, 0), (0, 1)):
        crops = new_faces(PAIR[source], each=30)
        steps = [edited(editor, crops, source, target, intensity) for intensity in (0, 0.25, 0.5, 0.75, 1)]
        read = np.array([judge.predict(faces.astype(np.float32))[:, target].mean() for faces in steps])
        assert read[0] < 0.2
        assert read[-1] > read[0] + 0.2
        assert np.diff(read).min() > -0.01, read  # nothing but a judge's wavering where it is sure already
