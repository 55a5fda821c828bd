"""The networks of a run as its coordinator needs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from facesynth.config import SynthesisConfig
from facesynth.console import UsageError, printable
from facesynth.dataset import Dataset
from facesynth.device import pick_device
from facesynth.expression import load_judge
from facesynth.generators.editor import load_editor
from facesynth.identity import InsightfaceEmbedder, Mode, open_embedder
from facesynth.synthesis import Job
from facesynth.target import canonical_label


class Networks:
    """Opened once: to calibrate, to check classes before anything is written, and to name them in the manifest."""

    def __init__(self, config: SynthesisConfig, method: str) -> None:
        self.config, self.method = config, method
        self.device, self.device_note = pick_device(config.device)
        self.judge = load_judge(config.judge, self.device)
        self.editor = load_editor(config.generator, self.device) if "editor" in method else None
        self.embedder, self.identity = open_embedder(config.identity, config.identity_model, self.device)

    @property
    def digests(self) -> dict[str, str]:
        """What, beside the settings, must be the same for a run to be gone on with."""
        return {
            "judge_weights": self.judge.digest,
            "generator_weights": self.editor.digest if self.editor else "",
            "identity_used": self.embedder.name if self.embedder else "off",
        }

    def require_known(self, dataset: Dataset, wanted: dict[str, int]) -> None:
        """Raise UsageError unless judge and editor know every class that is wanted or a source."""
        for label in dataset.classes:
            if self.editor is not None:
                self._require(label, self.editor.classes, "generator", self.config.generator, "editor-48")
            if wanted.get(label):
                self._require(label, self.judge.classes, "judge", self.config.judge, "judge-48")

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
        """What the workers are told."""
        config = self.config
        intensity = config.intensity or (self.editor.intensity if self.editor else (1.0, 1.0))
        # The training listing stays with the coordinator: every slot brings its own sample along.
        return Job(
            replace(dataset, samples={}),
            folder,
            config.generator,
            config.judge,
            *self._identity_for_workers(),
            intensity,
            self.method,
            self.device,
            config.batch_size,
            config.seed,
        )
