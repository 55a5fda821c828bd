"""What a run leaves to read: metadata.csv in the training split's folder, and the report beside the output."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesynth import __version__
from facesynth.config import SynthesisConfig
from facesynth.dataset import Dataset, Sample
from facesynth.expression import BATCH, soft_labels
from facesynth.models import Networks
from facesynth.output import write_metadata
from facesynth.page import some
from facesynth.photo import UnreadableImage, decode
from facesynth.pipeline import Tally, read_faces
from facesynth.plan import SynthesisResult
from facesynth.report import GateScores, Pair, Report, write_report
from facesynth.screening import GATES, Reference
from facesynth.synthesis import Job, Row, as_editor, generator_name, seed_text

Array = NDArray[Any]

COLUMNS = (
    "file_name",
    "label",
    "synthetic",
    "source",
    "source_label",
    "generator",
    "seed",
    "intensity",
    *(f"{gate}_score" for gate in GATES),
    "identity_model",
)
SHOWN_PER_CLASS = 12
SHOWN_REJECTS = 48

ABOUT = {
    "quality": "rank of the worst fault among real images",
    "expression": "the judge's probability of the target class",
    "novelty": "1 − similarity to the nearest image that it must not copy",
    "identity": "cosine between source and result",
}


class Names:
    """Final names of synthetic images: `label/synthetic-000012.png`, where no real image has such a name."""

    def __init__(self, dataset: Dataset) -> None:
        self._folder = dataset.split_folders["train"]
        self._stem = "synthetic"
        taken = {Path(sample.name).stem.rpartition("-")[0] for sample in dataset.samples["train"]}
        while self._stem in taken:
            self._stem += "-more"

    def in_split(self, row: Row) -> str:
        """Posix path below the training split's folder."""
        return f"{row.label}/{self._stem}-{row.index:06d}{Path(str(row.file)).suffix}"

    def path(self, row: Row) -> Path:
        """Path below the output."""
        return Path(self._folder) / self.in_split(row)


@dataclass(frozen=True)
class Run:
    """A finished run, as its table and its page need it."""

    config: SynthesisConfig
    dataset: Dataset
    networks: Networks
    reference: Reference
    job: Job
    tally: Tally
    names: Names

    @property
    def folder(self) -> Path:
        """The training split's folder in the output."""
        return self.config.out / self.dataset.split_folders["train"]

    @property
    def generator(self) -> str:
        """What the synthetic images were made by."""
        return generator_name(self.networks.generator, self.job.method, self.networks.drawer)

    @property
    def drawn(self) -> bool:
        """Whether the synthetic faces were drawn from noise, not edited from real ones."""
        return self.networks.draws

    @property
    def gates(self) -> dict[str, str]:
        """What the score of each gate is."""
        return ABOUT | (
            {"identity": "cosine to the most similar real face, which must be another person"} if self.drawn else {}
        )

    @property
    def intensities(self) -> tuple[float, float] | None:
        """What was asked of edits, else the least and the greatest that were accepted; None where there are none."""
        found = [row.intensity for row in self.tally.accepted.values() if row.intensity is not None]
        if not found or as_editor(self.networks.generator) is None:
            return None
        return self.job.intensity or (round(min(found), 2), round(max(found), 2))

    @property
    def soft_columns(self) -> tuple[str, ...]:
        """Columns of metadata.csv for what the judge reads in an image, one for each class; none unless asked for."""
        return tuple(f"p_{label}" for label in self.dataset.classes) if self.config.soft_labels else ()

    def accepted(self) -> list[Row]:
        """The accepted rows by class and number."""
        place = {label: k for k, label in enumerate(self.dataset.classes)}
        return sorted(self.tally.accepted.values(), key=lambda row: (place[row.label], row.index))


def write_table(run: Run) -> None:
    """Write metadata.csv: every image of the training split in the output, real ones first, in a fixed order."""
    rows = _table(run)
    if run.soft_columns:
        rows = _softened(rows, run.soft_columns, _readings(run))
    write_metadata(run.folder / "metadata.csv", COLUMNS + run.soft_columns, rows)


def _table(run: Run) -> Iterator[dict[str, object]]:
    if not run.config.synthetic_only:
        for sample in run.dataset.samples["train"]:
            yield {"file_name": sample.name, "label": sample.label, "synthetic": "false"}
    for row in run.accepted():
        yield {
            "file_name": run.names.in_split(row),
            "label": row.label,
            "synthetic": "true",
            "source": row.source,
            "source_label": row.source_label,
            "generator": run.generator,
            "seed": seed_text(run.job.seed, row.index, row.attempt),
            "intensity": row.intensity if run.networks.generator else "",
            **{f"{gate}_score": row.scores[gate] for gate in GATES},
            "identity_model": run.networks.identity_model,
        }


def _softened(
    rows: Iterable[dict[str, object]], columns: tuple[str, ...], readings: Mapping[str, Array]
) -> Iterator[dict[str, object]]:
    """The rows with what the judge reads in each image, to train on as soft labels."""
    for row in rows:
        shares = [f"{share:.4f}" for share in readings.get(str(row["file_name"]), ())]
        yield row | dict(zip(columns, shares, strict=False))  # one that cannot be read any more has none


def _readings(run: Run) -> dict[str, Array]:
    """File name → probabilities (K,) that the judge gives each image of the training split in the output, as it was written."""
    output = replace(run.dataset, root=run.config.out, form="folder")
    samples = [Sample("train", str(row["file_name"]), str(row["label"])) for row in _table(run)]
    faces = read_faces(output, samples, run.networks.embedder, {}, "reading expressions")
    found: dict[str, Array] = {}
    while batch := list(islice(faces, BATCH)):
        crops = np.round(np.stack([crop for _, crop, _ in batch]) * 255).astype(np.uint8)
        read_as = run.networks.judge.read(crops, run.dataset.classes)
        assert read_as is not None, "Networks.require_known has asked the judge"
        found |= zip((name for name, _, _ in batch), soft_labels(read_as), strict=True)
    return found


def write_page(run: Run, result: SynthesisResult) -> None:
    """Write report.html into the run's folder. The same run always writes the same page."""
    networks = run.networks
    fallback = networks.identity.startswith("built-in embedder") and run.config.identity == "auto"
    report = Report(
        title=run.config.src.resolve().name,
        command=result.verb,
        classes=run.dataset.classes,
        real=result.real,
        synthetic=result.synthetic,
        target=result.target,
        accepted=list(_accepted_pairs(run)),
        rejected=list(_rejected_pairs(run)),
        rejections=result.rejected,
        gates=_gate_scores(run),
        settings=_settings(run),
        provenance={
            "generator": run.generator,
            "judge": networks.judge.full_name,
            "identity": networks.identity,
            "facesynth": __version__,
            "torch": importlib.metadata.version("torch"),
        },
        warnings=[f"identity was checked by the {networks.identity}"] if fallback else [],
        licence=networks.licence,
        drawn=run.drawn,
    )
    assert result.report is not None
    write_report(result.report, report)


def _accepted_pairs(run: Run) -> Iterator[Pair]:
    rows = run.accepted()
    for label in run.dataset.classes:
        for row in some([row for row in rows if row.label == label], SHOWN_PER_CLASS):
            yield from _pair(run, row, run.config.out / run.names.path(row), run.names.in_split(row))


def _rejected_pairs(run: Run) -> Iterator[Pair]:
    rows = sorted(run.tally.rejected, key=lambda row: (row.label, row.attempt, row.index))
    for row in some(rows, SHOWN_REJECTS):
        yield from _pair(run, row, run.job.folder / str(row.file), row.source or str(row.file))


def _pair(run: Run, row: Row, file: Path, name: str) -> Iterator[Pair]:
    """The pair, or nothing where an image has gone since: the report shows what can be shown."""
    with suppress(UnreadableImage, OSError):
        before = None
        if row.source is not None:
            before = run.dataset.read(Sample("train", row.source, str(row.source_label), row.offset)).pixels
        after = decode(file.read_bytes(), file).pixels
        yield Pair(before, after, row.source_label, row.label, row.scores, name, row.reason)


def _gate_scores(run: Run) -> dict[str, GateScores]:
    scores = {}
    for gate in GATES:
        accepted, rejected = (np.array(run.tally.scores[gate, passed]) for passed in (True, False))
        if len(accepted) or len(rejected):
            scores[gate] = GateScores(accepted, rejected, _threshold(gate, run), run.gates[gate])
    return scores


def _threshold(gate: str, run: Run) -> dict[str, float] | float:
    if gate == "expression":
        return dict(run.networks.judge.thresholds)
    found = run.reference.thresholds
    if gate == "identity" and run.drawn:
        return found["stranger"]
    if gate == "identity":
        return {way: found[way] for way in ("aligned", "whole") if way in found}
    if gate == "novelty" and not run.drawn:
        return {"another image": found["novelty"], "its source": found["unedited"]}
    return found[gate]


def _settings(run: Run) -> dict[str, object]:
    settings = run.config.model_dump(mode="json", exclude={"workers", "on_existing", "out", "src"})
    return settings | {"intensity": run.intensities, "device": run.job.device}
