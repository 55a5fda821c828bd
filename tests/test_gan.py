"""Generators that draw faces from noise: the networks, the losses, what goes together, and that classes are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faces import draw
from PIL import Image
from torch import Tensor, nn

from facesynth import config, geometry, train, weights
from facesynth.console import UsageError
from facesynth.generators import losses
from facesynth.generators.drawer import FaceDrawer
from facesynth.generators.gan import GanRecipe, layout
from facesynth.generators.latent import LAYOUTS, Critic, Generator
from facesynth.loop import Loop
from facesynth.recipe import TrainConfig
from facesynth.training_data import load_faces

CLASSES = ["happy", "neutral", "surprise"]

# --- networks ---------------------------------------------------------------------------------------------------------


def numbers(network: nn.Module) -> list[int]:
    """How many numbers each layer holds, in order: its parameters, and the running statistics of batch norm."""
    layers = [layer for layer in network.modules() if not list(layer.children())]
    counts = [sum(t.numel() for t in layer.state_dict().values() if t.is_floating_point()) for layer in layers]
    return [count for count in counts if count]


def test_the_layers_of_dcgan_128_are_those_of_its_source() -> None:
    generator, critic = Generator("dcgan-128", CLASSES), Critic("dcgan-128", len(CLASSES))
    assert numbers(generator) == [
        *(4_915_200, 6_144, 262_144, 512, 524_288, 1_048_576, 1_024, 2_097_152, 4_194_304, 4_194_304, 4_194_304, 2_048),
        *(2_097_152, 1_048_576, 1_024, 524_288, 262_144, 512, 6_147),
    ]
    assert numbers(critic) == [6_144, 512, 262_144, 512, 524_288, 1_024, 1_048_576, 1_024, 2_097_152, 8_193]


def lively(network: nn.Module) -> Any:
    """The network with weights that keep the signal's size however few channels there are."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.3)
    return network


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", LAYOUTS)
def test_a_network_draws_images_of_its_size_and_its_critic_reads_them(network: str, channels: int) -> None:
    shape: dict[str, Any] = {"channels": channels, "width": 8}
    generator, labels = Generator(network, CLASSES, latent=5, conditional=True, **shape), torch.arange(3)
    images = generator(100 * torch.randn(3, 5), labels)
    size = LAYOUTS[network].size
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    for condition, heads in {"none": None, "label": None, "projection": None, "auxiliary": (3, 3)}.items():
        scores, logits = Critic(network, 3, condition, **shape)(images, labels)
        assert scores.shape == (3,)
        assert (None if logits is None else logits.shape) == heads


@pytest.mark.parametrize("network", LAYOUTS)
def test_a_critic_whose_gradient_is_held_scores_each_image_by_itself(network: str) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(4, LAYOUTS[network].channels, *[LAYOUTS[network].size] * 2), torch.zeros(4).long()
    for norm in ("layer", "none"):
        critic = lively(Critic(network, 3, norm=norm, dropout=0.0, width=8))
        assert critic(images, labels)[0].std() > 0.01
        torch.testing.assert_close(
            critic(images, labels)[0][:2], critic(images[:2], labels[:2])[0], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("conditional", [True, False])
def test_a_saved_generator_draws_the_same_face_from_the_same_noise(conditional: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = lively(Generator("conv-48", CLASSES, latent=6, conditional=conditional, width=2))
    noise, labels = torch.randn(32, 6), torch.arange(32) % 3
    for _ in range(5):
        generator(noise, labels)  # running statistics of its own
    weights.save(tmp_path / "g.safetensors", "generator", generator, {"classes": CLASSES})
    drawer = FaceDrawer(weights.load(str(tmp_path / "g.safetensors")))
    assert (drawer.classes, drawer.latent_size, drawer.size, drawer.channels) == (CLASSES, 6, 48, 1)
    assert drawer.conditional is conditional
    drawn = drawer.draw(labels.tolist(), noise.numpy())
    assert drawn.shape == (32, 48, 48, 1)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    with torch.no_grad():
        expected = (generator.eval()(noise, labels) + 1) / 2
    assert np.abs(drawn[..., 0] - expected[:, 0].numpy()).max() < 0.01  # half precision on disk
    assert np.abs(drawer.draw([2], noise[2:3].numpy()) - drawn[2:3]).max() < 1e-6
    other = drawer.draw([0], noise[2:3].numpy())
    assert bool(np.abs(other - drawn[2:3]).max() > 0.01) is conditional
    assert np.abs(drawn[:-1] - drawn[1:]).mean() > 0.05


def test_emphasis_asks_for_more_of_the_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = lively(Generator("conv-48", CLASSES, latent=6, conditional=True, width=2))
    noise, labels = torch.randn(32, 6), torch.arange(32) % 3
    for _ in range(5):
        generator(noise, labels)  # running statistics of its own
    header = {"classes": CLASSES, "sampling": {"emphasis": 1.5}}
    weights.save(tmp_path / "g.safetensors", "generator", generator, header)
    drawer = FaceDrawer(weights.load(str(tmp_path / "g.safetensors")))
    drawn = drawer.draw(labels.tolist(), noise.numpy())[..., 0]
    with torch.no_grad():
        plain, more = ((generator.eval()(noise, labels, asked)[:, 0].numpy() + 1) / 2 for asked in (1.0, 1.5))
    assert np.abs(drawn - more).max() < 0.01 < np.abs(drawn - plain).max()


# --- losses -----------------------------------------------------------------------------------------------------------


def test_gradient_penalties_of_a_linear_critic_follow_from_its_slope() -> None:
    slope = torch.randn(3, 8, 8)

    def critic(images: Tensor) -> Tensor:
        return (images * slope).sum((1, 2, 3))

    real, generated = torch.randn(2, 5, 3, 8, 8)
    rng = torch.Generator().manual_seed(0)
    assert losses.lipschitz_penalty(critic, real, generated, rng).item() == pytest.approx((slope.norm() - 1) ** 2)
    assert losses.gradient_penalty(critic, real).item() == pytest.approx(slope.norm() ** 2)


def test_the_gradient_penalty_looks_between_real_and_generated_images() -> None:
    seen: list[Tensor] = []

    def critic(images: Tensor) -> Tensor:
        seen.append(images)
        return images.square().sum((1, 2, 3))

    losses.lipschitz_penalty(critic, torch.zeros(9, 1, 2, 2), torch.ones(9, 1, 2, 2), torch.Generator().manual_seed(0))
    places = seen[0].detach().flatten(1)
    assert torch.equal(places[:, :1].expand(-1, 4), places)  # a straight line from one to the other
    assert 0 <= places.min() < 0.3 < 0.7 < places.max() <= 1


def test_the_losses_are_least_where_their_papers_say() -> None:
    sure = torch.tensor([20.0, 20.0])
    assert losses.discrimination(sure, -sure).item() == pytest.approx(0, abs=1e-6)
    smoothed = [losses.discrimination(torch.tensor([s]), -sure, 0.1).item() for s in (1.7, np.log(9), 2.7)]
    assert min(smoothed) == smoothed[1]  # log-odds of 0.9
    assert losses.fooling(-sure).item() == pytest.approx(20)
    assert losses.wasserstein(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 2.0])).item() == -2.5


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gan: {loss: wasserstein, condition: auxiliary}", "auxiliary does not go with .* choose condition label"),
        ("gan: {loss: relativistic, label_smoothing: 0.1}", "label_smoothing goes with loss bce alone"),
        ("gan: {loss: bce, clip: 0.1}", "clip goes with loss wasserstein alone"),
        (
            "gan: {critic_step: 5}",
            r"setting gan\.critic_step in .*my\.yaml\. Did you mean 'critic_steps'\? Known: network",
        ),
        ("gan: {network: residual-48, width: 12}", "width of residual-48 has to be a multiple of 8, not 12"),
        ("gan: {condition: label, transition: [9, 3]}", "transition has to end after it begins"),
        ("gan: {transition: [0, 9]}", "but condition is none"),
        ("gan: {emphasis: 2}", "emphasis strengthens a condition, but condition is none"),
        ("gan: {loss: wgan}", r"gan\.loss in .*my\.yaml: should be 'bce', .*, not 'wgan'"),
        ("network: {width: 8}", "network is not for recipe gan; give gan: "),
        ("losses: {identity: 1}", "recipe gan weighs class and penalty, not identity"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_does(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"recipe: gan\nimages: 100\n{text}\n")
    with pytest.raises(UsageError, match=message) as caught:
        config.load(TrainConfig, {}, preset=str(tmp_path / "my.yaml"))
    assert "{'" not in str(caught.value)


# --- data -------------------------------------------------------------------------------------------------------------


def test_faces_are_read_at_the_networks_size_and_colour(tmp_path: Path) -> None:
    for person in range(40):
        face = Image.fromarray(draw("happy", person, 60, colour=True))
        path = tmp_path / ("gray" if person % 2 else "colour") / f"{person}.png"
        path.parent.mkdir(exist_ok=True)
        (face.convert("L") if person % 2 else face).save(path)
    faces = load_faces(tmp_path, "cpu", 64, colour=True)
    assert faces.crops.shape == (40, 64, 64, 3)
    assert faces.crops.dtype == torch.uint8
    images, labels, _ = faces.take(torch.arange(40))
    assert images.shape == (40, 3, 64, 64)
    gray = images[labels == 1]
    assert torch.equal(gray[:, :1].expand(-1, 3, -1, -1), gray)
    assert (images[labels == 0][:, 0] - images[labels == 0][:, 2]).abs().mean() > 0.02
    small = load_faces(tmp_path, "cpu")
    assert small.crops.shape == (40, 48, 48)
    assert torch.equal(small.labels, faces.labels)


def test_an_aligned_crop_shows_the_same_face_at_every_size() -> None:
    photo = draw("happy", 3, 350, colour=True).astype(np.float32) / 255
    frame = geometry.frame_of(photo, geometry.TEMPLATE * 5 + 40)
    assert frame.aligned
    large = geometry.crop(photo, frame, 96, colour=True)
    assert large.shape == (96, 96, 3)
    halved = large.reshape(48, 2, 48, 2, 3).mean((1, 3)) @ np.array([0.299, 0.587, 0.114], np.float32)
    assert np.abs(halved - geometry.crop(photo, frame)).max() < 0.02


# --- training ---------------------------------------------------------------------------------------------------------


def recipe_of(drawn: Path, **gan: Any) -> tuple[GanRecipe, Loop]:
    """A recipe on the drawn faces, and the loop that steps it."""
    settings: dict[str, Any] = {"images": 96, "batch_size": 4, "device": "cpu", "precision": "fp32", "warmup_images": 0}
    settings |= {"recipe": "gan", "gan": gan, "learning_rate": 0.01}
    told = config.load(TrainConfig, settings)
    wanted = layout(told.gan)
    recipe = GanRecipe(told, load_faces(drawn, "cpu", wanted.size, colour=wanted.channels == 3))
    return recipe, Loop(recipe, told, drawn)


@pytest.mark.parametrize(
    ("loss", "drops", "normalises"), [("bce", 4, 0), ("wasserstein", 0, 3), ("wasserstein-gp", 0, 0)]
)
def test_the_critic_of_dcgan_64_drops_values_or_normalises_as_its_loss_needs(
    loss: str, drops: int, normalises: int, drawn: Path
) -> None:
    layers = list(recipe_of(drawn, network="dcgan-64", width=2, loss=loss)[0].critic.modules())
    assert sum(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in layers) == drops
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == normalises


@pytest.mark.parametrize("condition", ["none", "label", "auxiliary", "projection"])
@pytest.mark.parametrize("loss", ["bce", "wasserstein", "wasserstein-gp", "relativistic"])
def test_losses_and_conditions_combine(loss: str, condition: str, drawn: Path) -> None:
    if (loss, condition) == ("wasserstein", "auxiliary"):
        return  # refused
    recipe, loop = recipe_of(drawn, network="conv-48", width=2, channels=3, loss=loss, condition=condition)
    kernels = [p for model in recipe.models.values() for p in model.parameters() if p.ndim > 1]
    before = [kernel.detach().clone() for kernel in kernels]
    for _ in range(2):
        logs = loop.step()
    assert all(torch.isfinite(value) for value in logs.values())
    assert not any(torch.equal(old, new) for old, new in zip(before, kernels, strict=True))


def test_a_transition_hides_the_class_at_first(drawn: Path) -> None:
    told = {"network": "residual-48", "width": 8, "loss": "relativistic", "condition": "projection", "latent": 4}
    recipe, loop = recipe_of(drawn, **told, transition=[8, 16], diffaugment=0.5)
    label = recipe.generator.layers.label.weight
    before = label.detach().clone()
    for _ in range(2):
        loop.step()
    assert torch.equal(label, before)
    assert not recipe.critic.projection.weight.any()
    for _ in range(3):
        loop.step()
    assert not torch.equal(label, before)
    assert recipe.critic.projection.weight.any()


def test_clipped_weights_stay_in_their_range(drawn: Path) -> None:
    recipe, loop = recipe_of(drawn, network="dcgan-64", width=2, loss="wasserstein", clip=0.02, optimizer="rmsprop")
    for _ in range(3):
        loop.step()
        largest = [parameter.abs().max().item() for parameter in recipe.critic.parameters()]
        assert max(largest) == pytest.approx(0.02)  # reached, since the rate is high, and held


@pytest.mark.parametrize(("preset", "images"), [("cgan-48", 2400), ("acgan-48", 2400), ("faces-48", 4800)])
def test_another_label_changes_a_drawn_face_as_it_changes_real_ones(
    preset: str, images: int, drawn: Path, tmp_path: Path
) -> None:
    gan = config.read_yaml(config.preset_path(preset))["gan"] | {"width": 8, "transition": [0, 0], "diffaugment": 0}
    settings: dict[str, Any] = {
        "images": images,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "ema_images": 1000,
        "gan": gan,
    }
    result = train(drawn, preset, tmp_path, device="cpu", precision="fp32", **settings)
    assert all(0.3 < value < 2 for value in result.figures["diversity"].values())
    assert (tmp_path / "losses.png").stat().st_size > 5_000
    drawer = FaceDrawer(weights.load(str(tmp_path)))
    noise = np.random.default_rng(0).standard_normal((50, drawer.latent_size), np.float32)
    made = [drawer.draw([k] * 50, noise)[..., 0] for k in range(3)]
    faces = load_faces(drawn, "cpu")
    mean = [faces.crops[faces.labels == k].numpy().mean(axis=0) / 255 for k in range(3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        along = ((made[a] - made[b]) * (mean[a] - mean[b])).sum(axis=(1, 2))
        assert (along > 0).mean() > 0.9
