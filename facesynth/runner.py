"""The story of a run, top to bottom: scan → plan → calibrate → waves → metadata.csv → report → result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from facesynth import console, runfolder
from facesynth.config import SynthesisConfig
from facesynth.console import UsageError, printable
from facesynth.dataset import Dataset, real_only, scan
from facesynth.output import write_atomic
from facesynth.plan import Plan, SynthesisResult

if TYPE_CHECKING:
    from facesynth.models import Networks
    from facesynth.pipeline import Tally

Config = TypeVar("Config", bound=SynthesisConfig)


def preview(verb: str, config: Config, plan: Callable[[Config, Dataset], Plan]) -> SynthesisResult:
    """`--dry-run`: check everything that can be checked by names alone, and show the plan. Loads no network."""
    dataset = _scan(config)
    runfolder.check(config, dataset)
    made = plan(config, dataset)
    console.plan_table(made.counts, made.target)
    return SynthesisResult(verb, config.out, made.counts, dict.fromkeys(made.counts, 0), made.target)


def run(verb: str, config: Config, plan: Callable[[Config, Dataset], Plan], method: str = "editor") -> SynthesisResult:
    """Make what `plan` asks for. Raises UsageError before anything is written, FacesynthError when a run cannot go on."""
    from facesynth import card, manifest, pipeline, weights
    from facesynth.execute import default_workers
    from facesynth.models import Networks

    dataset = _scan(config)
    runfolder.check(config, dataset)
    wanted = plan(config, dataset).wanted  # a wrong target fails before any network is loaded
    _require_wanted(wanted, verb)
    # Pinned, so that all processes, and a resumption, take the same weights.
    roles = ["sources", "judge"] + ([] if config.img2img else ["generator"])  # a pipeline is no single file
    specs = {role: getattr(config, role) for role in roles}
    config = config.model_copy(update={role: weights.pin(spec) for role, spec in specs.items()})
    networks = Networks(config, method)
    networks.require_known(dataset, wanted)
    folder = runfolder.begin(config, dataset, networks.digests)
    finished = folder / "result.json"
    if finished.exists():
        console.note(f"{printable(config.out)} is finished already: nothing left to do.")
        return _read_result(finished)
    dataset, reference = pipeline.calibrate(dataset, folder, networks.embedder, config.seed, networks.draws)
    made = plan(config, dataset)
    _announce(config, networks, made)
    if not config.synthetic_only:
        pipeline.copy_real(dataset, config.out, config.link)
    job = networks.job(dataset, folder)
    names = manifest.Names(dataset)
    # Pipelines are so large that one at a time is enough, unless more are asked for.
    workers = config.workers or (1 if networks.pipeline else default_workers(networks.device))
    tally = pipeline.run_waves(
        job,
        made.wanted,
        pipeline.without_sources if networks.draws else made.assign,
        workers,
        config.max_attempts,
        lambda row: pipeline.land(job, config.out / names.path(row), row),
    )
    result = _result(verb, config, made, tally, networks.identity)
    run = manifest.Run(config, dataset, networks, reference, job, tally, names)
    manifest.write_table(run)
    manifest.write_page(run, result)
    card.write_card(run, result)
    write_atomic(finished, json.dumps(asdict(result), indent=1, default=str).encode())
    return result


def _scan(config: SynthesisConfig) -> Dataset:
    dataset = real_only(scan(config.src))
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
    generator = networks.generator.name if networks.generator else "classic augmentation"
    people = f"   people: {networks.drawer.name}" if networks.drawer else ""
    console.note(
        f"device: {networks.device_note}   generator: {generator}{people}   identity: {networks.identity_model}   "
        f"seed: {config.seed}"
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
