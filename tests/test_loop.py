"""The loop: parts of a batch, memory that runs out, checkpoints, trackers, curves, and warnings while there is time to act."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ended
from PIL import Image
from torch import Tensor, nn

from facesynth import config, console, train, weights
from facesynth.console import FacesynthError, UsageError
from facesynth.curves import draw_losses
from facesynth.generators.gan import GanRecipe
from facesynth.guard import Guard
from facesynth.loop import Loop
from facesynth.recipe import Descend, Logs, TrainConfig
from facesynth.training_data import Faces, load_faces


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are printed once a process; each test hears its own."""
    monkeypatch.setattr(console._State, "said", set())


def told(**settings: Any) -> TrainConfig:
    common = {"recipe": "gan", "images": 64, "batch_size": 8, "device": "cpu", "precision": "fp32", "warmup_images": 0}
    return TrainConfig(**common | settings)


class Line:
    """A `Trainable` that fits a line to points; `limit` is the most points that fit into its memory."""

    def __init__(self, limit: int = 1000) -> None:
        torch.manual_seed(0)
        self.limit, self.parts = limit, []
        self.model = nn.Linear(3, 1)
        self.models = self.averaged = {"model": self.model}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"model": torch.optim.SGD(self.model.parameters(), 0.1)}
        self.points = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        return descend("model", lambda count: self.loss(count, rng))

    def loss(self, count: int, rng: torch.Generator) -> tuple[Tensor, Logs]:
        if count > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        self.parts.append(count)
        points = self.points[torch.randint(50, (count,), generator=rng)]
        loss = (self.model(points)[:, 0] - points.sum(1)).square().mean()
        return loss, {"loss": loss.detach()}


def test_seeds_and_steps_draw_other_faces(tmp_path: Path) -> None:
    drawn = set()
    for seed in range(3):
        line = Line()
        loop = Loop(line, told(seed=seed), tmp_path)
        for _ in range(3):
            before = line.model.weight.detach().clone()
            loop.step()
            drawn.add(tuple((line.model.weight - before).flatten().tolist()))
            line.model.load_state_dict({"weight": before, "bias": torch.zeros(1)})
    assert len(drawn) == 9


def gan_of(faces: Faces, out: Path, **settings: Any) -> tuple[GanRecipe, Loop]:
    torch.manual_seed(0)
    gan = {"network": "conv-48", "width": 2, "latent": 8, "condition": "label"} | settings.pop("gan", {})
    config = told(gan=gan, **settings)
    recipe = GanRecipe(config, faces)
    return recipe, Loop(recipe, config, out)


@pytest.fixture(scope="module")
def faces(drawn: Path) -> Faces:
    return load_faces(drawn, "cpu")


# --- parts of a batch -------------------------------------------------------------------------------------------------


def test_parts_of_a_batch_add_up_to_its_mean(tmp_path: Path) -> None:
    whole, divided = Line(), Line()
    loops = [Loop(whole, told(), tmp_path), Loop(divided, told(accumulate=3), tmp_path)]
    logs = [[loop.step() for _ in range(4)] for loop in loops]
    assert whole.parts == [8] * 4
    assert divided.parts == [3, 3, 2] * 4
    torch.testing.assert_close(divided.model.weight, whole.model.weight)
    for one, other in zip(*logs, strict=True):
        torch.testing.assert_close(one, other)


def test_out_of_memory_halves_the_parts_and_begins_the_step_again(
    faces: Faces, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in the same bytes as if it had been so small from the start, though a critic had stepped before."""
    small, loop = gan_of(faces, tmp_path, accumulate=4)
    for _ in range(3):
        loop.step()
    whole = GanRecipe._generator_loss

    def limited(self: GanRecipe, count: int, rng: torch.Generator) -> Any:
        found = whole(self, count, rng)
        if count > 3:
            raise RuntimeError(
                "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            )
        return found

    monkeypatch.setattr(GanRecipe, "_generator_loss", limited)
    halved, loop = gan_of(faces, tmp_path)
    for _ in range(3):
        loop.step()
    for name, model in halved.models.items():
        for key, value in model.state_dict().items():
            assert torch.equal(value, small.models[name].state_dict()[key]), (name, key)
    said = capsys.readouterr().err
    assert said.count("out of memory: going on with 4 faces at a time; a step still sees 8 (2 parts)") == 1
    assert said.count("2 faces at a time; a step still sees 8 (4 parts)") == 1


def test_what_does_not_fit_even_alone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FacesynthError, match="out of memory with one face at a time"):
        Loop(Line(limit=0), told(), tmp_path).step()


def test_a_bug_is_not_taken_for_too_little_memory(tmp_path: Path) -> None:
    line = Line()
    line.points = torch.randn(50, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Loop(line, told(), tmp_path).step()


def test_what_only_some_steps_log_is_averaged_over_these(tmp_path: Path) -> None:
    class Sometimes(Line):
        def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
            logs = super().step(rng, number, descend)
            return logs | {"rare": torch.tensor(float(number))} if number % 4 == 2 else logs

    Loop(Sometimes(), told(tracker="none"), tmp_path).run()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["rare"] == 4  # of steps 2 and 6, and the last one logs none


# --- what it leaves and goes on from ----------------------------------------------------------------------------------

JUDGE: dict[str, Any] = {
    "batch_size": 6,
    "device": "cpu",
    "network": {"width": 4, "dropout": 0.2},
    "checkpoint_minutes": 1e-9,
}


def test_the_newest_checkpoints_are_kept_and_the_newest_that_can_be_read_is_gone_on_from(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = JUDGE | {"schedule": "constant", "images": 24, "keep_checkpoints": 3}
    whole = train(drawn, "judge-48", tmp_path / "out", **settings)
    expected = whole.weights.read_bytes()
    names = sorted(path.name for path in (tmp_path / "out").glob("checkpoint*"))
    assert names == [f"checkpoint-{images:08d}.pt" for images in (12, 18, 24)]
    cut = (tmp_path / "out" / names[2]).read_bytes()[:9000]
    (tmp_path / "out" / names[2]).write_bytes(cut)
    whole.weights.unlink()  # what is finished needs no checkpoint
    resumed = train(drawn, "judge-48", tmp_path / "out", resume=True, **settings)
    said = capsys.readouterr().err
    assert f"{names[2]}: the checkpoint cannot be read (" in said
    assert f"; going on from {names[1]}." in said
    assert resumed.weights.read_bytes() == expected
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint*")) == names
    logged = [json.loads(line)["images"] for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert logged == [6, 12, 18, 24]
    whole.weights.unlink()
    for name in names:
        (tmp_path / "out" / name).write_bytes(cut)
    with pytest.raises(FacesynthError, match=r"00000024\.pt: the checkpoint cannot be read .* no earlier one"):
        train(drawn, "judge-48", tmp_path / "out", resume=True, **settings)


def test_a_training_goes_on_with_a_lower_learning_rate(faces: Faces, tmp_path: Path) -> None:
    gan_of(faces, tmp_path, images=8)[1].run()
    recipe, loop = gan_of(faces, tmp_path, images=16, learning_rate=1e-9, critic_rate=0.5)
    loop.restore()
    assert loop.images == 8
    before = recipe.generator.layers[0].weight.clone()
    loop.step()
    assert [optimizer.param_groups[0]["lr"] for optimizer in recipe.optimizers.values()] == pytest.approx([1e-9, 5e-10])
    assert (recipe.generator.layers[0].weight - before).abs().max() < 1e-7


def test_figures_and_sheets_go_to_the_tracker(faces: Faces, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    gan_of(faces, tmp_path, checkpoint_minutes=1e-9, images=24)[1].run()
    board = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "scalars": 0})
    board.Reload()
    assert [event.step for event in board.Images("sheet")] == [8, 16, 24]
    shown = Image.open(tmp_path / "sheet-00000024.png")
    assert (board.Images("sheet")[0].width, board.Images("sheet")[0].height) == shown.size
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = [line["critic"] for line in lines if "critic" in line]
    assert [event.value for event in board.Scalars("critic")] == pytest.approx(logged)
    assert {"gradient/critic", "diversity/happy"} <= set(board.Tags()["scalars"])


def test_a_tracker_that_cannot_be_used_is_refused_before_anything_is_written(
    drawn: Path, tmp_path: Path, facesynth: Callable[..., Ended]
) -> None:
    flags = ("--preset", "judge-48", "--out", tmp_path / "out", "--device", "cpu")
    ended = facesynth("train", drawn, *flags, "--tracker", "wandbb")
    assert (ended.code, (tmp_path / "out").exists()) == (2, False)
    assert "no tracker 'wandbb'. Did you mean 'wandb'? Trackers: none, aim, " in ended.err
    missing = next(name for name in ("aim", "swanlab", "wandb") if find_spec(name) is None)
    ended = facesynth("train", drawn, *flags, "--tracker", missing)
    assert (ended.code, (tmp_path / "out").exists()) == (2, False)
    assert f"tracker {missing} is not installed: pip install {missing}" in ended.err


def test_a_training_without_a_tracker_leaves_its_log_alone(drawn: Path, tmp_path: Path) -> None:
    train(drawn, "judge-48", tmp_path, **JUDGE, images=6, tracker="none")
    assert not (tmp_path / "tensorboard").exists()
    assert (tmp_path / "log.jsonl").exists()


def test_curves_are_drawn_in_panels_and_smoothed_where_there_are_many_points(tmp_path: Path) -> None:
    def size(lines: list[dict[str, float]]) -> tuple[int, int]:
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        draw_losses(tmp_path / "losses.png")
        return Image.open(tmp_path / "losses.png").size

    noise = np.random.default_rng(0).normal(size=200)
    one = size([{"images": k, "loss": float(value)} for k, value in enumerate(noise)])
    colours = np.asarray(Image.open(tmp_path / "losses.png").convert("RGB")).reshape(-1, 3)
    assert (colours == (31, 119, 180)).all(axis=1).sum() > 200  # the smoothed curve, opaque over faint points
    three = size([{"images": 1, "loss": 1.0, "accuracy": 0.5}, {"images": 1, "diversity/happy": 0.9}])
    assert three == (3 * one[0], one[1])


# --- warnings ---------------------------------------------------------------------------------------------------------


def heard(lines: list[dict[str, float]], capsys: pytest.CaptureFixture[str], images: int = 100_000) -> str:
    guard = Guard(images)
    for k, line in enumerate(lines):
        guard.watch(1000 * (k + 1), line)
    return capsys.readouterr().err


def test_a_loss_or_a_gradient_that_leaves_its_range_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    usual = [{"loss": float(value), "gradient/model": 0.5} for value in rng.lognormal(0, 1, 100)]
    assert heard(usual, capsys) == ""
    early = [{"loss": 1e4}, *usual[:5]]  # large at the very start, as many are
    assert heard(early, capsys) == ""
    said = heard([*usual, {"loss": 300.0, "gradient/model": 0.5}, {"loss": 3e5, "gradient/model": 90.0}], capsys)
    assert said.count("warning:") == 2
    assert "after 101,000 images loss is 300, " in said
    assert "gradient/model is 90, 180 times what is usual: the training is about to diverge" in said
    assert "--resume and a lower learning_rate" in said


def test_a_value_that_is_not_finite_ends_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FacesynthError, match=r"diverged after 1,000 images \(loss is not finite\)"):
        heard([{"loss": math.nan}], capsys)


def test_a_critic_that_has_won_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    won = [{"critic": 0.001, "generator": 5 + 0.5 * k} for k in range(12)]
    assert "the critic has won" in heard(won, capsys)
    assert heard([{"critic": 0.001, "generator": 9.0 - 0.5 * k} for k in range(12)], capsys) == ""  # it catches up
    assert heard([line | {"critic": 0.3} for line in won], capsys) == ""
    assert heard([line | {"critic": -8.0} for line in won], capsys) == ""  # a distance, not a cross-entropy


def test_a_class_that_collapses_is_named_but_not_in_the_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    fine = {"diversity/happy": 0.9}
    beginning = [fine | {"diversity/sad": 0.1}] * 5
    assert heard(beginning, capsys) == ""
    said = heard([*beginning, *[fine | {"diversity/sad": 0.12}] * 20], capsys)
    assert said.count("warning:") == 1
    assert "after 20,000 images the faces of a class are nearly the same face again and again" in said
    assert "sad (0.12), where 1 is how much real ones differ" in said
    both = [{"diversity/happy": 0.2, "diversity/sad": 0.1}] * 30
    assert heard(both, capsys).count("warning:") == 1
    assert "mode collapse" in heard([fine, fine, {"diversity/happy": 0.2}], capsys)  # it was better before


def test_a_generator_that_ignores_its_noise_is_found_out_while_it_trains(
    faces: Faces, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, loop = gan_of(faces, tmp_path, learning_rate=1e-6, images=16)
    with torch.no_grad():
        for model in (recipe.generator, loop.ema["generator"]):
            model.layers[0].weight[:, : recipe.settings.latent] = 0
    loop.run()
    said = " ".join(capsys.readouterr().err.split())
    assert "mode collapse" in said
    assert all(f"{name} (0.0" in said for name in faces.classes)


def test_an_editor_that_puts_one_mask_on_every_face_is_found_out(drawn: Path, faces: Faces) -> None:
    from facesynth.generators.editor import EditorRecipe
    from facesynth.generators.networks import Editor

    settings = config.load(TrainConfig, {"judge": "", "embedder": "", "device": "cpu"}, preset="editor-48")
    recipe = EditorRecipe(settings, faces)
    editor = Editor(list(faces.classes), channels=(8, 8, 8)).eval()
    with torch.no_grad():
        found = recipe.check(editor)
        assert set(found) == {f"diversity/{name}" for name in faces.classes}
        assert min(found.values()) > 0.6
        editor.paint2.weight.zero_()
        editor.paint2.bias[0] = 5.0  # a mask that covers all, and gray below it
        assert max(recipe.check(editor).values()) < 0.1


# --- compilation ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_networks_train_alike_also_where_penalties_differentiate_twice(faces: Faces, tmp_path: Path) -> None:
    gan = {"loss": "relativistic"}
    plain, loop = gan_of(faces, tmp_path / "plain", gan=gan, images=24)
    loop.run()
    compiled, loop = gan_of(faces, tmp_path / "compiled", gan=gan, images=24, compile="on")
    loop.run()
    for one, other in zip(plain.generator.parameters(), compiled.generator.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)
    weights.save(tmp_path / "g.safetensors", "generator", compiled.generator, {})
    assert torch.equal(
        weights.load(str(tmp_path / "g.safetensors")).module.layers[0].weight,
        compiled.generator.layers[0].weight.half(),
    )


@pytest.mark.slow
def test_what_cannot_be_compiled_is_an_error_where_it_was_asked_for(
    faces: Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(FacesynthError, match=r"cannot be compiled here .* set compile: off"):
        gan_of(faces, tmp_path, images=24, compile="on")[1].run()


def test_parts_are_no_more_than_faces() -> None:
    with pytest.raises(UsageError, match="accumulate 9 makes more parts than batch_size 8 has faces"):
        config.load(TrainConfig, {"images": 8, "batch_size": 8, "accumulate": 9, "recipe": "judge"})
