"""The story of a run, top to bottom: scan → plan → calibrate → waves → metadata.csv → report → result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from facesynth import console, runfolder
from facesynth.config import SynthesisConfig
from facesynth.console import UsageError, printable
from facesynth.dataset import Dataset, scan
from facesynth.output import write_atomic
from facesynth.target import canonical_label

if TYPE_CHECKING:
    from facesynth.identity import Mode
    from facesynth.pipeline import Assign, Tally
    from facesynth.synthesis import Job

Config = TypeVar("Config", bound=SynthesisConfig)


@dataclass(frozen=True)
class Plan:
    """Real counts, final counts and what is to be made, all per class; `assign` gives open slots their sources."""

    counts: dict[str, int]
    target: dict[str, int]
    wanted: dict[str, int]
    assign: Assign


@dataclass(frozen=True)
class SynthesisResult:
    """What a run made: images per class, candidates tried, and rejections (class → reason → count).

    `real` counts the source's training images, also where `with_real` says that the output goes without them.
    """

    verb: str
    out: Path
    real: dict[str, int]
    synthetic: dict[str, int]
    target: dict[str, int]
    report: Path | None = None
    tried: int = 0
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    identity: str = ""
    with_real: bool = True

    @property
    def short(self) -> dict[str, int]:
        """How many images each class still lacks, for those that lack any."""
        lacking = {label: self.target[label] - self.real[label] - self.synthetic[label] for label in self.target}
        return {label: count for label, count in lacking.items() if count > 0}


def preview(verb: str, config: Config, plan: Callable[[Config, Dataset], Plan]) -> SynthesisResult:
    """`--dry-run`: check everything that can be checked by names alone, and show the plan. Loads no network."""
    dataset = _scan(config)
    runfolder.check(config, dataset)
    made = plan(config, dataset)
    console.plan_table(made.counts, made.target)
    return SynthesisResult(verb, config.out, made.counts, dict.fromkeys(made.counts, 0), made.target)


def run(verb: str, config: Config, plan: Callable[[Config, Dataset], Plan], method: str = "editor") -> SynthesisResult:
    """Make what `plan` asks for. Raises UsageError before anything is written, FacesynthError when a run cannot go on."""
    from facesynth import manifest, pipeline
    from facesynth.execute import default_workers

    dataset = _scan(config)
    runfolder.check(config, dataset)
    wanted = plan(config, dataset).wanted  # a wrong target fails before any network is loaded
    _require_wanted(wanted, verb)
    networks = Networks(config, method)
    networks.require_known(dataset, wanted)
    folder = runfolder.begin(config, dataset, networks.digests)
    finished = folder / "result.json"
    if finished.exists():
        console.note(f"{printable(config.out)} is finished already: nothing left to do.")
        return _read_result(finished)
    dataset, reference = pipeline.calibrate(dataset, folder, networks.embedder, config.seed)
    made = plan(config, dataset)
    _announce(config, networks, made)
    if not config.synthetic_only:
        pipeline.copy_real(dataset, config.out, config.link)
    job = networks.job(config, dataset, folder)
    names = manifest.Names(dataset)
    workers = config.workers or default_workers(networks.device)
    tally = pipeline.run_waves(
        job,
        made.wanted,
        made.assign,
        workers,
        config.max_attempts,
        lambda row: pipeline.land(job, config.out / names.path(row), row),
    )
    result = _result(verb, config, made, tally, networks.identity)
    run = manifest.Run(config, dataset, networks, reference, job, tally)
    manifest.write_table(run)
    manifest.write_page(run, result)
    write_atomic(finished, json.dumps(asdict(result), indent=1, default=str).encode())
    return result


def _scan(config: SynthesisConfig) -> Dataset:
    dataset = scan(config.src)
    for reason, count in dataset.skipped_reasons().items():
        if reason not in ("hidden", "not an image"):
            example = next(path for path, why in dataset.skipped if why == reason)
            console.warn(f"skipped {count}: {reason} ({example}).")
    return dataset


def _require_wanted(wanted: dict[str, int], verb: str) -> None:
    if not any(wanted.values()):
        raise UsageError(
            f"there is nothing to {verb}: every class has its target already; ask for more, for example uniform:N."
        )


def _announce(config: SynthesisConfig, networks: Networks, plan: Plan) -> None:
    generator = networks.editor.name if networks.editor else "classic augmentation"
    console.note(
        f"device: {networks.device_note}   generator: {generator}   identity: {networks.identity}   seed: {config.seed}"
    )
    console.plan_table(plan.counts, plan.target)


def _result(verb: str, config: SynthesisConfig, plan: Plan, tally: Tally, identity: str) -> SynthesisResult:
    made = Counter(label for label, _ in tally.accepted)
    return SynthesisResult(
        verb,
        config.out,
        plan.counts,
        {label: made[label] for label in plan.counts},
        plan.target,
        runfolder.folder_of(config.out) / "report.html",
        tally.tried,
        {label: dict(reasons) for label, reasons in tally.rejections.items()},
        identity,
        not config.synthetic_only,
    )


def _read_result(path: Path) -> SynthesisResult:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return SynthesisResult(**values | {"out": Path(values["out"]), "report": Path(values["report"])})


class Networks:
    """The networks of a run as the coordinator needs them: to calibrate, to check classes, and to name them in the manifest."""

    def __init__(self, config: SynthesisConfig, method: str) -> None:
        from facesynth.device import pick_device
        from facesynth.expression import load_judge
        from facesynth.generators.editor import load_editor
        from facesynth.identity import open_embedder

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
        from facesynth.identity import InsightfaceEmbedder

        if isinstance(self.embedder, InsightfaceEmbedder):
            return "insightface", str(self.embedder.path)
        return ("builtin" if self.embedder else "off"), None

    def job(self, config: SynthesisConfig, dataset: Dataset, folder: Path) -> Job:
        """What the workers are told."""
        from facesynth.synthesis import Job

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
