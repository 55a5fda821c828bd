"""What the log says of a training that goes wrong, while there is time to act."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from statistics import median

from facesynth import console
from facesynth.console import FacesynthError

WINDOW = 30
"""Lines of the log that tell what is usual."""

ENOUGH = 10
"""Lines that are needed for that, and that a critic has to have won for before it is said."""

OUT_OF_RANGE = 50.0
"""A loss or a gradient this many times its usual size has left its range..."""

SMALL = 0.1
"""...where sizes below this count as this: a term that is hardly there may grow a hundredfold and mean nothing."""

WON = 0.01
"""A critic's loss (cross-entropy or relativistic) from which the generator learns nothing: it is right by 99 % and more."""

COLLAPSED = 0.3
"""Diversity relative to real faces below which a class counts as collapsed."""

BEGINNING = 0.2
"""Share of a training in which a generator may not draw much yet."""

REMEDY = "Stop it, remove the checkpoints from after that point, and go on with --resume and a lower learning_rate in the preset."


class Guard:
    """Reads the lines of a training's log as they come, and warns on stderr, once of each thing.

    Divergence: a loss or a gradient's norm far above its running median, or a critic that has won while the generator's loss
    still grows. Collapse: `diversity/CLASS`, which is 1 for real faces, near none. `images` is how many the training sees.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self._history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._said: set[str] = set()

    def watch(self, images: int, figures: Mapping[str, float]) -> None:
        """Look at what is logged after so many images. Raises FacesynthError where a figure is not finite."""
        broken = [name for name, value in figures.items() if not math.isfinite(value)]
        if broken:
            raise FacesynthError(
                f"the training diverged after {images:,} images ({', '.join(broken)} is not finite); its checkpoints are from "
                "before. Go on with --resume and a lower learning_rate in the preset."
            )
        for name, value in figures.items():
            self._look_at_range(images, name, value)
        self._look_at_diversity(images, figures)
        for name, value in figures.items():
            self._history[name].append(value)
        if "critic" in figures:
            self._look_at_critic(images)

    def _look_at_range(self, images: int, name: str, value: float) -> None:
        before = [abs(old) for old in self._history[name]]
        if len(before) < ENOUGH:
            return
        usual = max(median(before), SMALL)
        if abs(value) > OUT_OF_RANGE * usual:
            self._say(
                name,
                f"after {images:,} images {name} is {value:.3g}, {abs(value) / usual:.0f} times what is usual: the training is "
                f"about to diverge. {REMEDY}",
            )

    def _look_at_critic(self, images: int) -> None:
        critic = list(self._history["critic"])[-ENOUGH:]
        opponent = next((name for name in ("generator", "adversarial") if name in self._history), "")
        losses = list(self._history[opponent])[-ENOUGH:] if opponent else []
        if len(losses) < ENOUGH or len(critic) < ENOUGH or not all(0 <= loss < WON for loss in critic):
            return
        if median(losses[ENOUGH // 2 :]) > median(losses[: ENOUGH // 2]):
            self._say(
                "critic",
                f"after {images:,} images the critic has won: its loss is {critic[-1]:.2g} and the generator's grows "
                f"({losses[-1]:.3g}), which learns nothing from it any more. Stop it, remove the newest checkpoints, and go on "
                "with --resume and a lower critic_rate in the preset, or choose another loss.",
            )

    def _look_at_diversity(self, images: int, figures: Mapping[str, float]) -> None:
        """All classes that are newly found to have collapsed, in one warning."""
        late = images >= BEGINNING * self.images
        collapsed = {
            name.partition("/")[2]: value
            for name, value in figures.items()
            if name.startswith("diversity/") and value < COLLAPSED and name not in self._said
            if late or any(old >= COLLAPSED for old in self._history[name])
        }
        if not collapsed:
            return
        self._said |= {f"diversity/{label}" for label in collapsed}
        seen = ", ".join(f"{console.printable(label)} ({value:.2f})" for label, value in collapsed.items())
        console.warn(
            f"after {images:,} images the faces of a class are nearly the same face again and again (mode collapse): {seen}, "
            f"where 1 is how much real ones differ. {REMEDY} Where it comes back, choose loss relativistic or wasserstein-gp, "
            "or give more images of the class."
        )

    def _say(self, key: str, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            console.warn(message)
