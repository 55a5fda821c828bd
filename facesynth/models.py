"""The networks of a run as its coordinator needs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from facesynth.config import AugmentConfig, SynthesisConfig
from facesynth.console import UsageError, printable, warn
from facesynth.dataset import Dataset
from facesynth.device import pick_device
from facesynth.expression import load_judge
from facesynth.generators import img2img
from facesynth.generators.drawer import FaceDrawer
from facesynth.identity import LICENCE_NOTE, InsightfaceEmbedder, Mode, open_embedder
from facesynth.synthesis import FaceGenerator, Job, as_editor, load_generator
from facesynth.target import canonical_label


class Networks:
    """Opened once: to calibrate, to check classes before anything is written, and to name them in the manifest."""

    def __init__(self, config: SynthesisConfig, method: str) -> None:
        self.config, self.method = config, method
        self.device, self.device_note = pick_device(config.device)
        self.judge = load_judge(config.judge, self.device)
        self.generator: FaceGenerator | None = None
        self.pipeline: img2img.Pipeline | None = None
        if "editor" in method:
            self.pipeline = img2img.find(config.generator, config.img2img) if config.img2img else None
            self.generator = load_generator(config.generator, self.device, config.attributes, self.pipeline)
        elif config.attributes:
            raise UsageError("--attributes: classic augmentation changes none; use --method editor, or leave it out.")
        self._warn_of_allies()
        self.drawer = self._open_drawer(config.drawer) if config.drawer else None
        self.draws = self.drawer is not None or isinstance(self.generator, FaceDrawer)
        """Whether the faces are drawn, and show nobody."""
        if isinstance(self.generator, FaceDrawer) and config.intensity:
            raise UsageError(
                f"--intensity: the generator {config.generator} draws faces instead of editing them, so there is nothing "
                "to weaken; leave it out."
            )
        self.embedder, self.identity = open_embedder(config.identity, config.identity_model, self.device)
        self.identity_model = self.embedder.name if self.embedder else "off"

    def _warn_of_allies(self) -> None:
        """Say so where the generator learned from the very judge that is to gate it."""
        if isinstance(self.generator, FaceDrawer) and self.judge.digest in self.generator.beside.values():
            warn(
                f"the judge {printable(self.config.judge)} was trained together with the generator "
                f"{printable(self.config.generator)}, which learned to suit it: it turns down little. Give another --judge, "
                "such as judge-48."
            )

    def _open_drawer(self, name: str) -> FaceDrawer:
        """What draws people for the editor."""
        if as_editor(self.generator) is None:
            raise UsageError(
                f"--sources {printable(self.config.sources)} draws people for an editor, and there is none here: the generator "
                f"{self.config.generator} makes faces without sources; leave --sources out."
            )
        drawer = load_generator(name, self.device)
        if not isinstance(drawer, FaceDrawer) or not drawer.conditional:
            raise UsageError(
                f"--sources: {printable(name)} draws no faces of a wanted expression; give 'new', or the weights of a "
                "conditional generator such as faces-48 or cgan-48."
            )
        return drawer

    @property
    def licence(self) -> str:
        """The terms of the pretrained models that took part, or nothing."""
        pipeline = (
            f"what the synthetic images may be used for is said in the licence of {self.pipeline.name}"
            if self.pipeline
            else ""
        )
        recogniser = LICENCE_NOTE if isinstance(self.embedder, InsightfaceEmbedder) else ""
        return "; ".join(filter(None, [pipeline, recogniser]))

    @property
    def digests(self) -> dict[str, str]:
        """What, beside the settings, must be the same for a run to be gone on with."""
        return {
            "judge_weights": self.judge.digest,
            "generator_weights": self.generator.digest if self.generator else "",
            "drawer_weights": self.drawer.digest if self.drawer else "",
            "identity_used": self.embedder.name if self.embedder else "off",
        }

    def require_known(self, dataset: Dataset, wanted: dict[str, int]) -> None:
        """Raise UsageError unless the judge knows every class that it is to read, and the generator every one that it is told.

        An editor is told the classes of its sources, too; one that draws whatever comes is told none.
        """
        editor = as_editor(self.generator)
        if editor and not editor.classes:
            self._require_attributes()
        if editor and editor.classes:
            sources = self.drawer.classes if self.drawer else dataset.classes
            for label in (*sources, *(label for label, count in wanted.items() if count)):
                if self.pipeline and canonical_label(label) not in editor.classes:
                    raise UsageError(
                        f"the class '{printable(label)}' has no prompt (there are some for {', '.join(editor.classes)}); add one "
                        "to img2img.prompts in a preset of your own, or rename the class."
                    )
                self._require(label, editor.classes, "generator", self.config.generator, "editor-48")
        for label in dataset.classes:
            if isinstance(self.generator, FaceDrawer) and self.generator.conditional and wanted.get(label):
                self._require(label, self.generator.classes, "generator", self.config.generator, "cgan-48")
            if wanted.get(label) or self.config.soft_labels:
                self._require(label, self.judge.classes, "judge", self.config.judge, "judge-48")

    def _require_attributes(self) -> None:
        """Raise UsageError unless an editor that knows no classes is asked for attributes alone."""
        keeps = isinstance(self.config, AugmentConfig) and self.config.expressions == "same"
        if not (keeps and self.config.attributes):
            raise UsageError(
                f"the generator {self.config.generator} changes attributes and no expressions; use it by facesynth augment "
                "--expressions same --attributes NAME=VALUE."
            )

    @staticmethod
    def _require(label: str, known: list[str], role: str, name: str, preset: str) -> None:
        if canonical_label(label) not in known:
            raise UsageError(
                f"the {role} {name} does not know the class '{printable(label)}' (it knows {', '.join(known)}); rename the "
                f"class, or train one that does: facesynth train SRC --preset {preset}, then --{role} WEIGHTS."
            )

    def _identity_for_workers(self) -> tuple[Mode, str | None]:
        """Exactly what was opened here: a worker must neither choose nor download anew."""
        if isinstance(self.embedder, InsightfaceEmbedder):
            return "insightface", str(self.embedder.path)
        return ("builtin" if self.embedder else "off"), None

    def job(self, dataset: Dataset, folder: Path) -> Job:
        """What the workers are told; the training images of `dataset` are those that can be read."""
        config = self.config
        # The training listing stays with the coordinator: every slot brings its own sample along.
        return Job(
            replace(dataset, samples={}),
            folder,
            config.generator,
            config.drawer,
            self.pipeline,
            config.judge,
            *self._identity_for_workers(),
            dataset.samples["train"][0],
            config.intensity,
            config.attributes,
            self.method,
            self.device,
            config.batch_size,
            config.seed,
        )
