"""The commands: flags → config → one call → print → exit code. Heavy imports wait inside the commands."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facesynth import __version__, console
from facesynth.console import EXIT_SHORT, FacesynthError, UsageError

if TYPE_CHECKING:
    from facesynth.plan import SynthesisResult

app = typer.Typer(
    name="facesynth",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXIT_INTERRUPTED = 130
OUTPUT = "Output"
TUNING = "Fine-tuning"
UPLIFT = "Does it help? (--uplift)"

SRC = typer.Argument(
    help="ImageFolder (class/*.png, or train/ val/ test/ above the classes) or a FER2013 CSV.", show_default=False
)
Src = Annotated[Path, SRC]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Where to write.", show_default="beside SRC", rich_help_panel=OUTPUT)
]
Generator = Annotated[
    str | None,
    typer.Option(
        help="What edits or draws faces: built-in name, weights file, or hf://org/name\\[@revision]\\[/file]; with --preset "
        "img2img, a pipeline.",
        show_default="editor-48",
    ),
]
Sources = Annotated[
    str | None,
    typer.Option(
        help="Whose faces are edited: real, new (people who do not exist), or the weights of what draws new ones.",
        show_default="real",
    ),
]
JudgeName = Annotated[str | None, typer.Option("--judge", help="Expression judge that gates.", show_default="judge-48")]
Identity = Annotated[str | None, typer.Option(help="auto, insightface, builtin or off.", show_default="auto")]
IdentityModel = Annotated[str | None, typer.Option(help="Model-pack folder, pack name, or an ONNX embedder.")]
Intensity = Annotated[
    str | None,
    typer.Option(metavar="LO,HI", help="Strength of an edit, each in 0 to 1.", show_default="the editor's"),
]
Attributes = Annotated[
    str | None,
    typer.Option(metavar="NAME=VALUE,...", help="What a translator changes beside the expression, e.g. pose=left."),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="auto")]
BatchSize = Annotated[int | None, typer.Option(help="Faces worked on together.", show_default="64")]
Workers = Annotated[int | None, typer.Option(help="Processes.", show_default="one per core up to 4; one on a GPU")]
Seed = Annotated[int | None, typer.Option(help="Of all random choices.", show_default="0")]
OnExisting = Annotated[
    str | None, typer.Option(help="fail, resume or overwrite.", show_default="fail", rich_help_panel=OUTPUT)
]
Link = Annotated[
    bool, typer.Option("--link", help="Hard-link the real images instead of copying them.", rich_help_panel=OUTPUT)
]
SyntheticOnly = Annotated[
    bool, typer.Option("--synthetic-only", help="Leave the real images out of the output.", rich_help_panel=OUTPUT)
]
SoftLabels = Annotated[
    bool,
    typer.Option(
        "--soft-labels",
        help="List in metadata.csv what the judge reads in each image, real ones too: columns p_CLASS.",
        rich_help_panel=OUTPUT,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.", rich_help_panel=OUTPUT)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.", rich_help_panel=OUTPUT)]
MaxAttempts = Annotated[
    int | None, typer.Option(help="Tries that one image may take.", show_default="50, in augment 10")
]
Preset = Annotated[str | None, typer.Option("--preset", help="YAML file of settings, or img2img; flags go before it.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"facesynth {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Balance a facial-expression dataset with synthetic faces that are worth training on.

    [bold]Examples[/bold]

      facesynth balance ./fer2013 --target uniform
      facesynth evaluate ./fer2013 ./fer2013-balanced --uplift
      facesynth augment ./fer2013 --per-image 2 --method classic
      facesynth train ./fer2013 --preset editor-48 --out runs/editor
    """


@app.command()
def balance(
    src: Annotated[Path | None, SRC] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="uniform, uniform:N, 0.5, disgust=2000,fear=5000, FILE.yaml or like:DIR.",
            show_default="uniform",
        ),
    ] = None,
    out: Out = None,
    generator: Generator = None,
    sources: Sources = None,
    judge: JudgeName = None,
    identity: Identity = None,
    identity_model: IdentityModel = None,
    intensity: Intensity = None,
    attributes: Attributes = None,
    device: Device = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    seed: Seed = None,
    max_attempts: MaxAttempts = None,
    preset: Preset = None,
    on_existing: OnExisting = None,
    link: Link = False,
    synthetic_only: SyntheticOnly = False,
    soft_labels: SoftLabels = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Draw a small dataset of people who do not exist, and balance that.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fill the rare classes of a dataset with screened synthetic faces.

    [bold]Examples[/bold]

      facesynth balance --demo
      facesynth balance ./fer2013 --target uniform
      facesynth balance ./fer2013.csv --target disgust=2000,fear=5000 --out ./more
      facesynth balance ./fer2013 --target 0.5 --dry-run
      facesynth balance ./fer2013 --sources new
      facesynth balance ./faces --preset img2img --generator org/name
      facesynth balance ./fer2013 --on-existing resume
    """
    from facesynth import balancing as story
    from facesynth.config import BalanceConfig

    flags = _given(locals())
    if demo:
        flags = _demo(flags, dry_run, quiet)
    _synthesise(story, BalanceConfig, flags, preset, dry_run, as_json, quiet)


@app.command()
def augment(
    src: Src,
    per_image: Annotated[
        int | None,
        typer.Option("--per-image", "-n", help="Variations of each image for each expression.", show_default="1"),
    ] = None,
    expressions: Annotated[
        str | None, typer.Option(help="same, all, or class names with commas.", show_default="same")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="editor (by --generator), classic or editor+classic.", show_default="editor")
    ] = None,
    out: Out = None,
    generator: Generator = None,
    sources: Sources = None,
    judge: JudgeName = None,
    identity: Identity = None,
    identity_model: IdentityModel = None,
    intensity: Intensity = None,
    attributes: Attributes = None,
    device: Device = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    seed: Seed = None,
    max_attempts: MaxAttempts = None,
    preset: Preset = None,
    on_existing: OnExisting = None,
    link: Link = False,
    synthetic_only: SyntheticOnly = False,
    soft_labels: SoftLabels = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make variations of every training image; edits pass the same gates as in balance.

    [bold]Examples[/bold]

      facesynth augment ./faces --per-image 2 --expressions all --intensity 0.5,1
      facesynth augment ./faces --method classic --per-image 4
      facesynth augment ./faces --expressions happy,sad --synthetic-only --out ./edits
    """
    from facesynth import augmenting as story
    from facesynth.config import AugmentConfig

    _synthesise(story, AugmentConfig, _given(locals()), preset, dry_run, as_json, quiet)


def _list_presets(value: bool) -> None:
    if value:
        from facesynth.config import presets

        for name, summary in presets().items():
            typer.echo(f"{name:<14}{summary}")
        raise typer.Exit


@app.command()
def train(
    src: Src,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            "-p",
            help="Name of a preset (see --list), or a YAML file.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the training.", show_default="runs/PRESET")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Training images to see.", show_default="the preset's")] = None,
    batch_size: BatchSize = None,
    judge: Annotated[str | None, typer.Option(help="Frozen judge that guides an editor.")] = None,
    embedder: Annotated[str | None, typer.Option(help="Frozen embedder that guides an editor.")] = None,
    editor: Annotated[str | None, typer.Option(help="Editor whose edits an embedder must see through.")] = None,
    also: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="A further dataset that a stargan learns from; repeatable.")
    ] = None,
    action_units: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|prototypes",
            help="What OpenFace measured in SRC's faces: a folder of CSVs, or one; or what is typical of their classes.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Fine-tune these: built-in name, weights file, or hf://org/name.", rich_help_panel=TUNING),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Layers that stay as they are in --init.", rich_help_panel=TUNING),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Of the optimiser.", show_default="the preset's; with --init a third", rich_help_panel=TUNING
        ),
    ] = None,
    device: Device = None,
    seed: Seed = None,
    list_presets: Annotated[
        bool, typer.Option("--list", callback=_list_presets, is_eager=True, help="List the presets and stop.")
    ] = False,
    tracker: Annotated[
        str | None,
        typer.Option(help="Where figures go beside log.jsonl: none, wandb, mlflow, ...", show_default="tensorboard"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="At the end, push weights and model card to the Hugging Face Hub."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository a private one.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train an editor, a generator of new faces, or a network that reads faces, on a dataset's training split.

    [bold]Examples[/bold]

      facesynth train --list
      facesynth train ./fer2013 --preset judge-48 --out runs/judge
      facesynth train ./fer2013 --preset editor-48 --judge runs/judge/model.safetensors
      facesynth train ./fer2013 --preset editor-48 --resume
      facesynth train ./fer2013 --preset cgan-48 --out runs/cgan
      facesynth train ./mine --preset judge-48 --init judge-48 --images 20000
      accelerate launch --num_processes 2 -m facesynth train ./fer2013 --preset cgan-48
      facesynth train ./rafd --preset stargan-128 --also ./celeba
      facesynth train ./celeba --preset ganimation --action-units ./openface
    """
    console.set_quiet(quiet)
    from facesynth.training import NotPushedError
    from facesynth.training import train as run

    settings: dict[str, Any] = {"images": images, "batch_size": batch_size, "also": also or None}
    settings["action_units"] = action_units
    settings |= {"init": init, "freeze": freeze, "learning_rate": learning_rate}
    settings |= {"device": device, "seed": seed, "tracker": tracker}
    guides = {"judge": judge, "embedder": embedder, "editor": editor}
    try:
        result = run(src, preset, out, resume=resume, push_to_hub=push_to_hub, private=private, **settings, **guides)
    except NotPushedError as error:
        again = [*sys.argv[1:], *([] if resume else ["--resume"])]
        raise NotPushedError(f"{error} That is: {shlex.join(['facesynth', *again])}") from error
    console.note(
        f"{result.weights}   {result.images:,} images in {result.seconds / 60:.1f} min   "
        f"log: {result.weights.with_name('log.jsonl')}"
    )
    if as_json:
        _print_json(asdict(result))


@app.command()
def evaluate(
    real: Annotated[Path, typer.Argument(help="The real dataset: ImageFolder with its splits, or a FER2013 CSV.")],
    synthetic: Annotated[
        Path, typer.Argument(help="What balance or augment made of it, or any ImageFolder of synthetic faces.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write.", show_default="beside SYNTHETIC", rich_help_panel=OUTPUT),
    ] = None,
    uplift: Annotated[
        bool, typer.Option("--uplift", help="Train classifiers with and without the images.", rich_help_panel=UPLIFT)
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few steps, seeds and arms: minutes on 2 cores.", rich_help_panel=UPLIFT)
    ] = False,
    arms: Annotated[
        str | None, typer.Option(help="Names with commas.", show_default="all", rich_help_panel=UPLIFT)
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trainings of each arm.", show_default="3; quick: 2", rich_help_panel=UPLIFT)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of every training.", show_default="by network", rich_help_panel=UPLIFT)
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(help="small or resnet18.", show_default="resnet18 on a GPU, else small", rich_help_panel=UPLIFT),
    ] = None,
    synthetic_weight: Annotated[
        str | None,
        typer.Option(help="In the loss, or auto: by validation.", show_default="1", rich_help_panel=UPLIFT),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validate on the training split.", rich_help_panel=UPLIFT)
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Test on another dataset than REAL's test split.", rich_help_panel=UPLIFT)
    ] = None,
    class_map: Annotated[
        str | None,
        typer.Option(metavar="THEIRS=OURS,...", help="Classes of --test; empty drops.", rich_help_panel=UPLIFT),
    ] = None,
    fraction: Annotated[
        str | None, typer.Option(help="Shares of the real data, e.g. 0.1,0.25,0.5,1.", rich_help_panel=UPLIFT)
    ] = None,
    ratio: Annotated[
        str | None, typer.Option(help="Shares of the synthetic images, e.g. 0.25,0.5,1.", rich_help_panel=UPLIFT)
    ] = None,
    fail_under: Annotated[
        list[str] | None, typer.Option(metavar="NAME=X", help="Exit 3 below it, e.g. coverage.disgust=0.5.")
    ] = None,
    fail_over: Annotated[
        list[str] | None, typer.Option(metavar="NAME=X", help="Exit 3 above it, e.g. copies=0.")
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="inception, judge, or an Inception weights file.", show_default="auto")
    ] = None,
    judge: JudgeName = None,
    identity: Identity = None,
    identity_model: IdentityModel = None,
    groups: Annotated[
        str | None, typer.Option(help="Columns with commas, to look for bias, e.g. sex,age_group.")
    ] = None,
    groups_table: Annotated[
        Path | None, typer.Option(help="CSV with file_name and the groups.", show_default="REAL's metadata.csv")
    ] = None,
    device: Device = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    preset: Preset = None,
    on_existing: OnExisting = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say whether synthetic images are good, are safe to use, and help a classifier.

    [bold]Examples[/bold]

      facesynth evaluate ./fer2013 ./fer2013-balanced
      facesynth evaluate ./fer2013 ./fer2013-balanced --uplift --quick
      facesynth evaluate ./faces ./faces-balanced --uplift --folds 5 --fraction 0.1,0.5,1
      facesynth evaluate ./fer2013 ./fer2013-balanced --fail-under coverage.disgust=0.5 --fail-over copies=0
    """
    from facesynth.config import EvaluateConfig, load

    console.set_quiet(quiet)
    config = load(EvaluateConfig, _given(locals()), preset=preset)
    from facesynth import evaluating

    result = evaluating.run(config)
    for sentence in result.verdict:
        console.note(sentence)
    console.note(f"report: {config.out / 'report.html'}")
    if as_json:
        typer.echo(result.model_dump_json())
    failing = evaluating.broken_bounds(result, config)
    for line in failing:
        console.error(line)
    if failing:
        raise typer.Exit(EXIT_SHORT)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """The settings among a command's local variables: what is no setting of the config is taken out."""
    others = {"preset", "demo", "dry_run", "as_json", "quiet"}
    return {
        key: value
        for key, value in values.items()
        if key not in others and isinstance(value, str | int | float | Path | list) and value is not False
    }


def _demo(flags: dict[str, Any], dry_run: bool, quiet: bool) -> dict[str, Any]:
    """The flags of a run on the demo's dataset, which is drawn if need be. Nothing is downloaded, and a finished run stays."""
    if "src" in flags or dry_run:
        raise UsageError("--demo draws its own dataset, so give neither SRC nor --dry-run with it.")
    from facesynth import demo

    console.set_quiet(quiet)
    demo.draw_dataset()
    return {"identity": "builtin", "on_existing": "resume", **flags, "src": demo.FOLDER}


def _synthesise(
    story: Any, model: Any, flags: dict[str, Any], preset: str | None, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    from facesynth import runner
    from facesynth.config import load

    console.set_quiet(quiet)
    config = load(model, flags, preset=preset)
    result = runner.preview(story.__name__.rpartition(".")[2], config, story.plan) if dry_run else story.run(config)
    if not dry_run:
        _summary(result)
    if as_json:
        _print_json(asdict(result) | {"short": result.short})
    if result.short and not dry_run:
        raise typer.Exit(EXIT_SHORT)


def _summary(result: SynthesisResult) -> None:
    real, synthetic = sum(result.real.values()), sum(result.synthetic.values())
    made = (
        f"{real:,} real + {synthetic:,} synthetic"
        if result.with_real
        else f"{synthetic:,} synthetic, real images left out"
    )
    console.note(f"{result.out}   {made}   report: {result.report}")
    if result.short:
        lacking = ", ".join(f"{label} {count:,}" for label, count in result.short.items())
        console.warn(
            f"short of the target: {lacking} missing. Try more --max-attempts, another --generator, or, where it edits, "
            "another --intensity; see the report."
        )


def _print_json(values: dict[str, Any]) -> None:
    if not console.is_mute():
        typer.echo(json.dumps(values, default=str))


def main() -> None:
    """Entry point: turns errors into one sentence and an exit code; FACESYNTH_DEBUG=1 shows tracebacks."""
    debug = os.environ.get("FACESYNTH_DEBUG") == "1"
    try:
        app(standalone_mode=True)
    except FacesynthError as error:
        if debug:
            raise
        console.error(str(error))
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == EXIT_INTERRUPTED:  # what typer makes of Ctrl-C
            console.error("stopped; everything finished is kept: go on with --on-existing resume (train: --resume).")
        raise
    except Exception as error:
        if debug:
            raise
        console.error(
            f"unexpected {type(error).__name__}: {error}. Set FACESYNTH_DEBUG=1 for the traceback, and please report it."
        )
        sys.exit(1)
