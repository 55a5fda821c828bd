"""The dataset card of an output: README.md with Hugging Face metadata, so that a copy of the folder says what it holds."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import DatasetCardData

from facesynth import __version__
from facesynth.console import printable
from facesynth.manifest import Run
from facesynth.output import write_atomic
from facesynth.plan import SynthesisResult

SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
"""Upper bounds, and what the Hugging Face Hub calls the sizes below them."""

CARD = """---
{metadata}
---

# {title}

{origin} facesynth {version} made the synthetic ones by `{verb}`. `metadata.csv` in the
training folder lists every image with its label, and says of each synthetic one {traced}, with which
seed, and how it scored at every gate.{readings}
Synthetic files also carry an XMP packet (`trainedAlgorithmicMedia`) where their format can hold one.

| class | real | synthetic | share synthetic |
|---|---|---|---|
{counts}

## How the synthetic images were made

- **Generator**: {generator}, {manner}, seed {seed}.
- **Gates**: {gates}. {tried:,} candidates were tried; {accepted} were accepted.
- **Judge**: {judge}. **Identity**: {identity}.

## Known limits

- A synthetic image shows what the generator and the judge take for the expression; both learned it from labels that people gave.
- Whether these images help a classifier is not known from here: `facesynth evaluate REAL THIS --uplift` measures it.
- A model that is trained on this data should be tested on real images alone; {apart}.

## Terms

The real images keep the terms of the dataset they come from{terms} {licence}Do not pass them off as photographs.
"""

EDITED = {
    "origin": "edited from real ones of {source}, which are not part of it",
    "traced": "from which image it was made, by what",
    "apart": "the sources of the synthetic images belong to the\n  training split",
    "terms": ", and an edited face is a picture of the same person: those terms hold\nfor the synthetic images too.",
}
DRAWN = {
    "origin": "drawn to go with the real ones of {source}, which are not part of it",
    "traced": "by what it was drawn",
    "apart": "none of them may be among the\n  images that the generator learnt from",
    "terms": """. A drawn face is meant to show nobody: near-copies of the
real training images were turned down, and, where identity was checked, faces that could be a real person's. But the generator
learnt from photographs of people, perhaps from others than these, and their terms may matter for what it draws.""",
}
"""What the card says of synthetic images that were edited from real ones, and of those that were drawn from noise."""


def write_card(run: Run, result: SynthesisResult) -> None:
    """Write README.md at the top of the output; the same run always writes the same card."""
    write_atomic(run.config.out / "README.md", render_card(run, result).encode("utf-8", errors="backslashreplace"))


def render_card(run: Run, result: SynthesisResult) -> str:
    """The card as text."""
    real = result.real if result.with_real else dict.fromkeys(result.real, 0)
    made = sum(result.synthetic.values())
    networks = run.networks
    said = DRAWN if run.drawn else EDITED
    return CARD.format(
        metadata=_metadata(run, sum(real.values()) + made).to_yaml(),
        title=printable(run.config.out.resolve().name),
        origin=_origin(run, sum(real.values()), made, said["origin"]),
        version=__version__,
        verb=f"facesynth {result.verb}",
        counts="\n".join(_row(label, real[label], result.synthetic[label]) for label in result.real),
        traced=said["traced"],
        readings=_readings(run),
        generator=run.generator,
        manner=", ".join(_manner(run)),
        seed=run.job.seed,
        gates="; ".join(f"{gate} ({about})" for gate, about in run.gates.items()),
        tried=result.tried,
        accepted=f"{made / result.tried:.0%}" if result.tried else "none",
        judge=networks.judge.full_name,
        identity=networks.identity,
        apart=said["apart"],
        terms=said["terms"],
        licence=f"{networks.licence[0].upper()}{networks.licence[1:]}. " if networks.licence else "",
    )


def _metadata(run: Run, images: int) -> DatasetCardData:
    return DatasetCardData(
        pretty_name=printable(run.config.out.resolve().name),
        license="other",
        task_categories=["image-classification"],
        size_categories=[next((size for bound, size in SIZES.items() if images < bound), "n>1M")],
        tags=["facial-expression-recognition", "synthetic", "facesynth"],
        configs=list(_configs(run)),
    )


def _configs(run: Run) -> Iterator[dict[str, object]]:
    """One for each split: the imagefolder builder refuses splits together of which one alone has a metadata.csv."""
    names = {"train": "train", "val": "validation", "test": "test"}
    for split, folder in run.dataset.split_folders.items():
        if split == "train" or not run.config.synthetic_only:
            files = [{"split": names[split], "path": f"{folder}/**" if folder else "**"}]
            yield {"config_name": "default" if split == "train" else names[split], "data_files": files}


def _manner(run: Run) -> Iterator[str]:
    if run.drawn:
        yield "each face drawn from noise"
    if run.intensities:
        low, high = run.intensities
        yield f"{'edited with ' if run.drawn else ''}intensities {low:g} to {high:g}"


def _readings(run: Run) -> str:
    if not run.soft_columns:
        return ""
    columns = ", ".join(f"`{printable(column)}`" for column in run.soft_columns)
    return f" Columns {columns} are what the judge reads in each image, as shares of one."


def _origin(run: Run, real: int, made: int, how: str) -> str:
    source = printable(run.config.src.resolve().name)
    if real:
        return f"{real:,} real images of {source} and {made:,} synthetic ones."
    return f"{made:,} synthetic images, {how.format(source=source)}."


def _row(label: str, real: int, synthetic: int) -> str:
    total = real + synthetic
    return f"| {printable(label)} | {real:,} | {synthetic:,} | {f'{synthetic / total:.0%}' if total else '—'} |"
