"""The arms of an uplift: the ways of training that are compared, in the vocabulary of the recogniser's settings.

Every arm has the same network, steps, batch size and seeds; all but `strong` augment lightly. What differs:

| arm           | batches are drawn from                      | classes     | and                                          |
| ------------- | ------------------------------------------- | ----------- | -------------------------------------------- |
| real          | real images                                 | as they are |                                              |
| strong        | real images                                 | as they are | strong classic augmentation                  |
| sampler       | real images                                 | evenly      |                                              |
| balanced-loss | real images                                 | as they are | logit-adjusted loss                          |
| mixup         | real images                                 | as they are | mixup                                        |
| soft-labels   | real images                                 | as they are | labels shared with a judge's reading         |
| duplicates    | real images + copies in the rarer classes   | as they are | as many copies as `rare` has synthetic ones  |
| synthetic     | synthetic images                            | evenly      |                                              |
| rare          | real + synthetic in the rarer classes       | as they are |                                              |
| share         | real images, half of each class synthetic   | evenly      |                                              |
| first         | synthetic, falling to none at 60 % of steps | evenly      | real images alone at the end                 |
| remedies      | the best remedy, from strong to soft-labels, by validation, with the best other that it lacks         |
| combined      | the best of rare, share and first by validation, with the best remedy of the other arms that it lacks |
| control       | the same as the best arm with synthetic images, but without them                                     |

`control` answers what no other arm does: whether it was the images that helped, or what else such an arm does differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from facesynth.console import UsageError, did_you_mean, printable
from facesynth.recipe import RecognizerSettings

MIXING = ("rare", "share", "first")
"""Arms that train on real and synthetic images."""

SOFT = "soft-labels"
"""The arm that needs a judge which knows the classes."""

TOGETHER, COMBINED, CONTROL = "remedies", "combined", "control"


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    title: str
    settings: RecognizerSettings

    @property
    def uses_synthetic(self) -> bool:
        """Whether synthetic images are trained on."""
        return self.settings.synthetic not in ("none", "duplicates")

    def weighted(self, weight: float) -> Arm:
        """The arm with synthetic images (or duplicates) at this loss weight."""
        if self.settings.synthetic in ("none", "only"):
            return self
        return replace(self, settings=self.settings.model_copy(update={"synthetic_weight": weight}))


REMEDIES: Mapping[str, Mapping[str, object]] = {
    "strong": {"augmentation": "strong"},
    "sampler": {"sampling": "balanced", "loss": "cross-entropy"},  # classes drawn evenly leave nothing to adjust
    "balanced-loss": {"loss": "logit-adjusted", "sampling": "natural"},
    "mixup": {"mixup": 0.2},
    SOFT: {"soft_labels": 0.7},
}
"""What each arm without synthetic images changes of `real`."""

ARMS = (
    Arm("real", "real images", RecognizerSettings()),
    Arm("strong", "strong classic augmentation", RecognizerSettings(augmentation="strong")),
    Arm("sampler", "class-balanced sampler", RecognizerSettings(sampling="balanced")),
    Arm("balanced-loss", "balanced loss (logit adjustment)", RecognizerSettings(loss="logit-adjusted")),
    Arm("mixup", "mixup", RecognizerSettings(mixup=0.2)),
    Arm(SOFT, "labels softened by the judge's reading", RecognizerSettings(soft_labels=0.7)),
    Arm("duplicates", "plain duplicates in the same number", RecognizerSettings(synthetic="duplicates")),
    Arm("synthetic", "synthetic images alone", RecognizerSettings(synthetic="only", sampling="balanced")),
    Arm("rare", "synthetic images in the rarer classes", RecognizerSettings(synthetic="rare")),
    Arm(
        "share",
        "the same share of synthetic images in every class",
        RecognizerSettings(synthetic="share", sampling="balanced", synthetic_share=0.5),
    ),
    Arm(
        "first",
        "synthetic images first, real ones alone at the end",
        RecognizerSettings(synthetic="first", sampling="balanced", synthetic_share=1.0),
    ),
)
QUICK = ("real", "sampler", "balanced-loss", SOFT, "duplicates", "rare", "share", "first")
"""Arms that a short training does not put at a disadvantage: strong augmentation and mixup pay late, if at all."""

NAMES = (*(arm.name for arm in ARMS), TOGETHER, COMBINED)


def choose(names: Sequence[str]) -> list[Arm]:
    """The arms of these names, all where there are none; `remedies` and `combined` are made later.

    Raises UsageError for an unknown name, and unless there is an arm with and one without synthetic images.
    """
    unknown = next((name for name in names if name not in NAMES), None)
    if unknown is not None:
        raise UsageError(
            f"--arms: there is no arm '{printable(unknown)}'.{did_you_mean(unknown, NAMES)} Arms: {', '.join(NAMES)}."
        )
    arms = [arm for arm in ARMS if not names or arm.name in names]
    if not any(arm.uses_synthetic for arm in arms) or all(arm.uses_synthetic for arm in arms):
        raise UsageError("--arms needs an arm with synthetic images and one without, for example real,share.")
    return arms


def combine(name: str, arms: Sequence[Arm], validation: Mapping[str, float]) -> Arm | None:
    """`combined`, or `remedies`: the best mixing arm, or the best remedy, with the best remedy that makes a new arm of it.

    Both by `validation`; None where there are no such arms.
    """
    bases = [arm for arm in arms if arm.name in (MIXING if name == COMBINED else REMEDIES)]
    remedies = [arm for arm in arms if arm.name in REMEDIES]
    if not bases:
        return None
    base = max(bases, key=lambda arm: validation[arm.name])
    for remedy in sorted(remedies, key=lambda arm: -validation[arm.name]):
        settings = base.settings.model_copy(update=dict(REMEDIES[remedy.name]))
        if all(settings != arm.settings for arm in arms):
            return Arm(name, f"{base.title}, with {remedy.title}", settings)
    return None


def control_of(arm: Arm) -> Arm | None:
    """The same training without synthetic images: duplicates take their places in `rare`, real images in `share` and `first`.

    None for synthetic images alone: without them nothing is left.
    """
    kind = {"rare": "duplicates", "share": "none", "first": "none"}.get(arm.settings.synthetic)
    if kind is None:
        return None
    update: dict[str, object] = {"synthetic": kind}
    if kind == "none":  # then no setting of synthetic images says anything
        fields = RecognizerSettings.model_fields
        update |= {name: fields[name].default for name in ("synthetic_share", "synthetic_weight")}
    return Arm(CONTROL, f"{arm.title}: the same without synthetic images", arm.settings.model_copy(update=update))
