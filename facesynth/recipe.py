"""What a training is told (`TrainConfig`) and what one family of networks brings to it (`Recipe`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from facesynth.device import pick_device

if TYPE_CHECKING:
    from facesynth.training_data import Faces


class RecognizerSettings(BaseModel):
    """How a recogniser is trained, and on what: the vocabulary of the arms of an uplift.

    `sampling`: each image is drawn equally often, or each class. `loss`: plain, or logit-adjusted (Menon et al. 2021).
    `mixup`: alpha of its Beta distribution (Zhang et al. 2018), 0 for none. `synthetic` says where such images go:

    - none: nowhere
    - rare: beside the real ones, in the classes that are rarer than the largest
    - duplicates: as rare, but plain copies of real images take their places
    - share: they take the places of `synthetic_share` of the drawn images, alike in every class that has some
    - first: as share, but the share falls evenly to none at 60 % of the training
    - only: no real images at all

    The loss weight of a synthetic image is its own weight times `synthetic_weight`. `soft_labels` is the share that a judge's
    probabilities have in every label, real images' too (Hinton et al. 2015, arXiv 1503.02531).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sampling: Literal["natural", "balanced"] = "natural"
    loss: Literal["cross-entropy", "logit-adjusted"] = "cross-entropy"
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    soft_labels: float = Field(default=0.0, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    augmentation: Literal["light", "strong"] = "light"
    synthetic: Literal["none", "rare", "duplicates", "share", "first", "only"] = "none"
    synthetic_share: float = Field(default=0.5, gt=0, le=1)
    synthetic_weight: float = Field(default=1.0, gt=0)


class GanSettings(BaseModel):
    """A generator that draws faces from noise: a network, a loss and a condition, and what they need.

    `network`: see `generators.latent`; its `latent` is the size of the noise, `channels` 1 or 3 and `width` (None: its
    own) say how it is built. `loss`:

    - bce: cross-entropy (Goodfellow et al. 2014) with one-sided `label_smoothing` (Salimans et al. 2016)
    - wasserstein: the critic's weights are held in [-clip, clip] (Arjovsky et al. 2017)
    - wasserstein-gp: its gradient is held near length 1 (Gulrajani et al. 2017)
    - relativistic: real and generated scores are compared in pairs, with R1 + R2 every `penalty_every` steps (R3GAN)

    `condition`: none, label (the class goes into both networks, Mirza & Osindero 2014), auxiliary (into the generator,
    and the critic has to tell it, Odena et al. 2017), or projection (the critic compares it with the image's features,
    Miyato & Koyama 2018). It is let in evenly over the images seen between `transition`'s two numbers: learning faces
    first and classes then is what saves rare classes from collapse (Transitional-cGAN, arXiv 2201.06578). `emphasis` is how much
    of it the finished generator is given: above 1 expressions are plainer than in training, and the faces of a class
    more alike.

    `diffaugment`: strength of the augmentation under which the critic sees real and generated images (arXiv 2006.10738),
    0 for none. A step is `critic_steps` updates of the critic, each on fresh images, and one of the generator. `betas`
    are Adam's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: Literal["dcgan-64", "dcgan-128", "conv-48", "residual-48"] = "dcgan-64"
    loss: Literal["bce", "wasserstein", "wasserstein-gp", "relativistic"] = "bce"
    condition: Literal["none", "label", "auxiliary", "projection"] = "none"
    transition: tuple[int, int] = (0, 0)
    emphasis: float = Field(default=1.0, gt=0)
    latent: int = Field(default=100, gt=0)
    channels: Literal[1, 3] | None = None
    width: int | None = Field(default=None, gt=0)
    critic_steps: int = Field(default=1, gt=0)
    clip: float = Field(default=0.01, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    diffaugment: float = Field(default=0.0, ge=0, le=1)
    optimizer: Literal["adam", "rmsprop"] = "adam"
    betas: tuple[float, float] = (0.5, 0.999)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.network == "residual-48" and self.width and self.width % 8:
            raise ValueError(f"width of residual-48 has to be a multiple of 8, not {self.width}")
        if self.transition[0] > self.transition[1]:
            raise ValueError("transition has to end after it begins; give [start, end] in images seen")
        if self.transition[1] and self.condition == "none":
            raise ValueError("transition lets a condition in, but condition is none; choose another, or leave it out")
        if self.emphasis != 1 and self.condition == "none":
            raise ValueError("emphasis strengthens a condition, but condition is none; choose another, or leave it out")
        if self.loss == "wasserstein" and self.condition == "auxiliary":
            raise ValueError(
                "condition auxiliary does not go with loss wasserstein, whose clipped weights are too small to tell classes "
                "apart; choose condition label, or loss bce, wasserstein-gp or relativistic"
            )
        if self.clip != type(self).model_fields["clip"].default and self.loss != "wasserstein":
            raise ValueError(f"clip goes with loss wasserstein alone, because loss {self.loss} leaves the weights free")
        _require_targets_to_smooth(self.loss, self.label_smoothing)
        return self


class DiffusionSettings(BaseModel):
    """A diffusion model of faces: how its `generators.denoiser.Denoiser` is built, trained and, as an editor, used.

    - `width`, `multiples`: channels of its first level, and of each level as a multiple of that
    - `label_dropout`: share of the training faces whose class is withheld (classifier-free guidance)
    - `min_snr`: above this ratio of signal to noise, a level of noise counts no more (arXiv 2303.09556, where it is gamma)
    - `steps`: from pure noise to a face; an edit takes the share of them that its intensity says
    - `guidance`: how much more of the class than in any face; 1 for no more
    - `intensity`: what edits take where the caller wishes none; see `generators.diffusion.DiffusionEditor`
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(default=64, gt=0, multiple_of=8)
    multiples: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(1, 2, 2), min_length=1, max_length=4)
    label_dropout: float = Field(default=0.1, gt=0, lt=1)
    min_snr: float = Field(default=5.0, gt=0)
    steps: int = Field(default=20, gt=0, le=1000)
    guidance: float = Field(default=2.0, ge=0)
    intensity: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(le=1)]] = (0.4, 0.6)

    @field_validator("intensity")
    @classmethod
    def _order_intensity(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"{value[0]:g} is above {value[1]:g}; give the lower one first")
        return value


class JointSettings(BaseModel):
    """How a generator and an expression recogniser are trained together, after FESGAN; see `generators.joint`.

    `from_images`: until so many images are seen, the generator is trained alone. `share` of the images that the recogniser
    learns from are synthetic; its learning rate is the generator's times `recognizer_rate`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_images: int = Field(default=0, ge=0)
    share: float = Field(default=0.5, gt=0, lt=1)
    recognizer_rate: float = Field(default=1.0, gt=0)


class TranslatorSettings(BaseModel):
    """An editor that repaints a face as a condition says (StarGAN, Choi et al. 2018; GANimation, Pumarola et al. 2018).

    `network`: see `generators.translation`; `channels` 1 or 3 and `width` (None: its own) say how it is built. `loss`,
    `critic_steps`, `label_smoothing` and `betas` are those of `GanSettings`. `flips`: faces are mirrored by chance.

    What faces are asked for are the dataset's classes and, beside them, the `columns` of the training split's
    metadata.csv; of a CelebA folder they are `attributes`. Where that is more than one thing, about the share `leave` of
    them is not asked for in training, and has to stay as it is. `identity_critic` adds a second critic, which tells
    pairs of a face and itself from pairs of a face and its reconstruction.

    `measures` are columns with numbers from -1 to 1, such as valence and arousal: a face is then asked for these, and for
    its action units where there are some (`TrainConfig.action_units`), instead of for a class. A class is the mean of its
    faces in them. Faces without all of them are left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: Literal["stargan-48", "stargan-128", "stargan-256", "ganimation-48", "ganimation-128"] = "stargan-128"
    loss: Literal["bce", "wasserstein", "wasserstein-gp", "relativistic"] = "wasserstein-gp"
    channels: Literal[1, 3] | None = None
    width: int | None = Field(default=None, gt=0)
    critic_steps: int = Field(default=5, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    betas: tuple[float, float] = (0.5, 0.999)
    flips: bool = True
    identity_critic: bool = False
    columns: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")
    leave: float = Field(default=0.25, ge=0, lt=1)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.loss == "wasserstein":
            raise ValueError(
                "loss wasserstein does not go with recipe translator, whose critic has to tell classes, for which clipped "
                "weights are too small; choose bce, wasserstein-gp or relativistic"
            )
        both = sorted(set(self.columns).intersection(self.measures))
        if both:
            raise ValueError(
                f"column {both[0]} holds either labels (columns) or numbers (measures); name it in one of them"
            )
        _require_targets_to_smooth(self.loss, self.label_smoothing)
        return self


def _require_targets_to_smooth(loss: str, smoothing: float) -> None:
    if smoothing and loss != "bce":
        raise ValueError(f"label_smoothing goes with loss bce alone, because loss {loss} has no targets to smooth")


WEIGHED = {
    "gan": ("class", "penalty"),
    "joint": ("class", "penalty", "synthetic", "expression", "intra_class"),
    "translator": ("class", "measures", "reconstruction", "identity", "attention", "smoothness", "penalty"),
}
"""The losses that a preset may weigh, for recipes with settings of their own."""


WITHOUT_CRITIC = ("judge", "embedder", "recognizer", "diffusion")
"""Recipes whose network learns from faces alone."""


class TrainConfig(BaseModel):
    """What a training preset may say; unknown keys are errors.

    `batch_size` is for all processes together. With `accumulate`, losses that compare the faces of a batch with each other,
    and batch normalisation, see one part at a time.
    """

    model_config = ConfigDict(extra="forbid")

    recipe: Literal["judge", "embedder", "editor", "recognizer", "gan", "joint", "translator", "diffusion"]
    images: int = Field(gt=0, description="training images to see in all, batch_size in each step")
    batch_size: int = Field(default=32, gt=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    critic_rate: float = Field(
        default=1.0, gt=0, description="the discriminator's learning rate as a multiple of the generator's"
    )
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="linear: constant at first, then evenly to nothing"
    )
    decay_share: float = Field(
        default=0.5, gt=0, le=1, description="the last share of the training, in which a linear schedule falls"
    )
    warmup_images: float = Field(
        default=10_000, ge=0, description="the learning rate rises over so many images at the start"
    )
    ema_images: float = Field(default=10_000, ge=0, description="half-life of the averaged weights, in images")
    network: dict[str, Any] = {}
    losses: dict[str, float] = {}
    stages: dict[int, dict[str, float]] = Field(
        default={}, description="images seen → weights that change from there on"
    )
    penalty_every: int = Field(default=8, gt=0, description="steps between R1 + R2 penalties")
    recognizer: RecognizerSettings = RecognizerSettings()
    gan: GanSettings = GanSettings()
    joint: JointSettings = JointSettings()
    translator: TranslatorSettings = TranslatorSettings()
    also: tuple[str, ...] = Field(default=(), description="further datasets that a translator learns from in turn")
    diffusion: DiffusionSettings = DiffusionSettings()
    action_units: str | None = Field(
        default=None,
        description="what OpenFace measured in the (first) dataset's faces: a folder of CSVs or one CSV; or prototypes: "
        "what is typical of each class",
    )
    init: str | None = Field(
        default=None, min_length=1, description="weights to begin with in place of chance: a name, a path or hf://"
    )
    freeze: tuple[str, ...] = Field(default=(), description="layers that stay as they are in init, by their names")
    critic_first: int = Field(
        default=0, ge=0, description="images at the start from which the critic alone learns: with init, it starts anew"
    )
    judge: str | None = None
    embedder: str | None = None
    editor: str | None = None
    accumulate: int = Field(
        default=1,
        gt=0,
        description="parts that a batch is worked through in, to save memory; doubled where it runs out",
    )
    checkpoint_minutes: float = Field(default=3.0, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0, description="newest checkpoints to keep")
    tracker: str = Field(
        default="tensorboard", description="none, or a tracker that Accelerate knows, where logs go too"
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile, which takes a minute or more at the start; auto: on CUDA"
    )
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"
    seed: int = 0

    @model_validator(mode="after")
    def _whole_faces(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate {self.accumulate} makes more parts than batch_size {self.batch_size} has faces"
            )
        return self

    @field_validator("freeze", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fine_tuned(self) -> Self:
        if self.freeze and not self.init:
            raise ValueError("freeze belongs to init: without it, the layers would stay as chance made them")
        if self.critic_first and self.recipe in WITHOUT_CRITIC:
            raise ValueError(f"critic_first is not for recipe {self.recipe}, which has no critic; leave it out")
        return self

    @model_validator(mode="after")
    def _known_to_the_recipe(self) -> Self:
        if self.also and self.recipe != "translator":
            raise ValueError(f"also goes with recipe translator alone: {self.recipe} learns from one dataset")
        if self.action_units and self.recipe != "translator":
            raise ValueError(f"action_units goes with recipe translator alone: {self.recipe} learns classes")
        if self.decay_share != 0.5 and self.schedule != "linear":
            raise ValueError(f"decay_share goes with schedule linear alone: {self.schedule} has no such part")
        if self.recipe == "diffusion":
            if self.network:
                raise ValueError("network is not for recipe diffusion; give diffusion: {width, multiples}")
            if self.losses or self.stages:
                raise ValueError(
                    "losses and stages are not for recipe diffusion, which has one loss alone; leave them out"
                )
        if self.recipe not in WEIGHED:
            return self
        if self.network and self.recipe != "joint":
            shape = "network, latent, channels, width" if self.recipe == "gan" else "network, channels, width"
            raise ValueError(f"network is not for recipe {self.recipe}; give {self.recipe}: {{{shape}}}")
        weighed = WEIGHED[self.recipe]
        unknown = {name for stage in (self.losses, *self.stages.values()) for name in stage}.difference(weighed)
        if unknown:
            names = f"{', '.join(weighed[:-1])} and {weighed[-1]}"
            raise ValueError(f"losses: recipe {self.recipe} weighs {names}, not {min(unknown)}")
        return self

    @model_validator(mode="after")
    def _can_be_joined(self) -> Self:
        if self.recipe != "joint":
            return self
        begins, (_, told) = self.joint.from_images, self.gan.transition
        if self.gan.condition == "none":
            raise ValueError(
                "recipe joint needs a generator that is told the class, and gan.condition is none; choose label, auxiliary "
                "or projection"
            )
        if begins < told:
            raise ValueError(
                f"joint.from_images {begins} comes before gan.transition has let the class in; give {told} or more"
            )
        if begins >= self.images:
            raise ValueError(
                f"joint.from_images {begins} leaves none of the {self.images} images to train the recogniser on; give fewer, "
                "or more images"
            )
        return self

    def torch_device(self) -> torch.device:
        """The device to train on; `auto` takes CUDA when it is there."""
        return torch.device(pick_device(self.device)[0])

    def loss_weights(self, images: int) -> dict[str, float]:
        """The weights of the losses after so many training images."""
        weights = dict(self.losses)
        for start in sorted(self.stages):
            if images >= start:
                weights |= self.stages[start]
        return weights

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast where the hardware multiplies in bf16, else no-op."""
        device = self.torch_device()
        capabilities = torch.cpu.get_capabilities()
        pays = device.type == "cuda" or capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        if self.precision == "bf16" or (self.precision == "auto" and pays):
            return torch.autocast(device.type, torch.bfloat16)
        return contextlib.nullcontext()


Logs = dict[str, Tensor]


class Descend(Protocol):
    """How a recipe changes its weights: the loop does it, and knows about precision, accumulation and other processes."""

    def __call__(self, name: str, loss: Callable[[int], tuple[Tensor, Logs]]) -> Logs:
        """One step of `optimizers[name]` down the gradient of `loss`; returns what `loss` logged.

        `loss` draws as many faces as it is told, and returns their mean loss and what to log. It may be called several
        times, for parts of the batch.
        """


class Companion(NamedTuple):
    """A network that a training leaves beside its result: a key of `weights.NETWORKS`, itself, and its figures."""

    kind: str
    network: Any
    figures: dict[str, Any]


class Trainable(Protocol):
    """What the loop steps: networks, those to average among them (the result first), and one optimisation step."""

    models: dict[str, Any]
    averaged: dict[str, Any]
    optimizers: dict[str, torch.optim.Optimizer]

    def step(self, rng: torch.Generator, number: int, descend: Descend) -> Logs:
        """One optimisation step, the `number`-th: one descent or several; returns what is logged."""


class Recipe(Trainable, Protocol):
    """What one family of networks is to `train`: built from the faces, stepped by the loop, with closing figures.

    It may also have `sheet(model)`, a picture to leave beside each checkpoint, `check(model)`, figures to log with it, and
    `draw(out, figures)`, pictures at the end. One that averages several networks may have `beside(averaged)`, which returns
    a `Companion` for each further weights file to leave, by its name without suffix. Logs named `critic` and `generator` (or
    `adversarial`), and checks named `diversity/CLASS` (1 for real faces, see `generators.diversity`), are what `guard` looks
    at.
    """

    kind: str

    def __init__(self, config: TrainConfig, faces: Faces) -> None: ...

    def finish(self, model: Any) -> dict[str, Any]:
        """Calibrate the averaged network; returns what goes into its weights' header."""
