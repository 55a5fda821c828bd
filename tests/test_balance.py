from __future__ import annotations

import csv
import errno
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ended, Tiny
from faces import draw, write_csv, write_tree
from PIL import Image

import facesynth as package
from facesynth import expression, extractors, imageset, pipeline
from facesynth.photo import SYNTHETIC_MEDIA

Command = Callable[..., Ended]
COUNTS = {"happy": 10, "neutral": 16, "surprise": 6}
MISSING = {"happy": 6, "surprise": 10}
QUICK = ("--identity", "off", "--workers", "1", "--batch-size", "4")


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "faces", COUNTS, first_person=500)


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run on `src` with `QUICK` settings, left alone, ends in."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_tree(folder / "faces", COUNTS, first_person=500)
    assert subprocess.run([sys.executable, tiny.script, "balance", folder / "faces", *QUICK]).returncode == 0
    return outcome(folder / "faces-balanced")


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def outcome(out: Path) -> dict[str, str]:
    """All that a run leaves for a person: the images, their table, and the page about them."""
    page = out.with_name(f"{out.name}.facesynth") / "report.html"
    return tree(out) | {"report": hashlib.sha256(page.read_bytes()).hexdigest()}


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def synthetic(folder: Path) -> list[dict[str, str]]:
    return [row for row in table(folder) if row["synthetic"] == "true"]


def attempts(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(out.with_name(f"{out.name}.facesynth").glob("wave-*/*.jsonl")):
        yield from map(json.loads, path.read_text().splitlines())


# --- what a run makes ------------------------------------------------------------------------------------------------


def test_a_dataset_becomes_uniform_and_its_table_tells_where_everything_comes_from(
    src: Path, facesynth: Command
) -> None:
    before = tree(src)
    ended = facesynth("balance", src, "--target", "uniform", "--identity", "builtin", "--workers", 1, "--json")
    assert ended.code == 0, ended.err
    result, out = json.loads(ended.out), src.with_name("faces-balanced")
    assert result["real"] == COUNTS
    assert result["synthetic"] == MISSING | {"neutral": 0}
    assert result["short"] == {}
    assert tree(src) == before
    assert before.items() <= tree(out).items()
    rows = table(out)
    assert sorted(row["file_name"] for row in rows) == sorted(
        path.relative_to(out).as_posix() for path in out.rglob("*.png")
    )
    assert Counter(row["label"] for row in rows) == dict.fromkeys(COUNTS, 16)
    for row in rows:
        assert row["file_name"].startswith(f"{row['label']}/")
        assert (row["source"] == "") == (row["synthetic"] == "false")
    for row in synthetic(out):
        assert row["source_label"] != row["label"]
        assert row["source"] in before
        assert row["generator"].startswith("editor-48@")
        assert row["identity_model"] == "embedder-48"
        assert all(row[f"{gate}_score"] for gate in ("quality", "expression", "novelty", "identity"))
        assert SYNTHETIC_MEDIA.encode() in (out / row["file_name"]).read_bytes()
    assert len({row["seed"] + row["label"] for row in synthetic(out)}) == sum(MISSING.values())
    assert "happy" in out.with_name("faces-balanced.facesynth").joinpath("report.html").read_text()


def test_synthetic_images_never_pass_for_real_ones_in_a_second_run(
    src: Path, undisturbed: dict[str, str], facesynth: Command
) -> None:
    assert facesynth("balance", src, *QUICK).code == 0
    once, twice = src.with_name("faces-balanced"), src.with_name("twice")
    ended = facesynth("balance", once, *QUICK, "--out", twice)
    assert ended.code == 0, ended.err
    assert f"holds {sum(MISSING.values())} images that its metadata.csv calls synthetic" in ended.err
    assert table(twice) == table(once)
    assert {name: tree(twice)[name] for name in undisturbed if name.endswith(".png")}.items() <= undisturbed.items()
    alone = src.with_name("alone")
    assert facesynth("balance", src, *QUICK, "--synthetic-only", "--out", alone).code == 0
    ended = facesynth("balance", alone, *QUICK)
    assert ended.code == 2
    assert "calls every image synthetic" in ended.err


def test_other_libraries_read_the_output(src: Path, facesynth: Command) -> None:
    from torchvision.datasets import ImageFolder

    assert facesynth("balance", src, *QUICK).code == 0
    read = ImageFolder(str(src.with_name("faces-balanced")))
    assert read.classes == list(COUNTS)
    assert len(read) == 48
    assert np.asarray(read[47][0]).shape == (48, 48, 3)


def test_soft_labels_are_what_the_judge_reads_in_each_image_as_in_an_evaluation(
    src: Path, tiny: Tiny, facesynth: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACESYNTH_CACHE", str(src.with_name("cache")))
    assert facesynth("balance", src, *QUICK, "--soft-labels").code == 0
    out = src.with_name("faces-balanced")
    rows = {row["file_name"]: [float(row[f"p_{label}"]) for label in COUNTS] for row in table(out)}
    assert len(rows) == 48
    assert np.array(list(rows.values())).sum(axis=1) == pytest.approx(1, abs=1e-3)
    judge = expression.load_judge(str(tiny.judge))
    extractor = extractors.JudgeExtractor(judge)
    real = imageset.read_real(out, extractor)
    for images in (real, imageset.read_synthetic(out, real.classes, extractor)):
        read_as = imageset.judged(images, judge).probabilities
        assert [rows[name] for name in images.names] == pytest.approx(expression.soft_labels(read_as), abs=1e-3)
    assert "p_happy" in (out / "README.md").read_text()


def test_soft_labels_of_a_run_that_made_nothing(src: Path, facesynth: Command) -> None:
    ended = facesynth(
        "balance", src, *QUICK, "--soft-labels", "--synthetic-only", "--max-attempts", 1, "--intensity", "0,0"
    )
    assert ended.code == 3, ended.err
    assert table(src.with_name("faces-balanced")) == []


def test_splits_are_carried_over_and_only_the_training_split_is_balanced(tmp_path: Path, facesynth: Command) -> None:
    write_tree(tmp_path / "faces/train", COUNTS, first_person=500)
    for split in ("valid", "test"):
        write_tree(tmp_path / "faces" / split, {"happy": 2, "surprise": 1}, first_person=900)
    assert facesynth("balance", tmp_path / "faces", *QUICK).code == 0
    before, after = tree(tmp_path / "faces"), tree(tmp_path / "faces-balanced")
    assert before.items() <= after.items()
    added = {name.rpartition("/")[0] for name in after.keys() - before.keys()}
    assert added == {"", "train", "train/happy", "train/surprise"}
    assert len(table(tmp_path / "faces-balanced/train")) == 48


def test_a_card_with_hub_metadata_says_what_the_output_is(tmp_path: Path, facesynth: Command) -> None:
    from huggingface_hub import DatasetCard

    src = write_tree(tmp_path / "faces/train", COUNTS, first_person=500).parent
    assert facesynth("balance", src, *QUICK).code == 0
    card = DatasetCard.load(tmp_path / "faces-balanced/README.md")
    assert card.data.task_categories == ["image-classification"]
    assert "synthetic" in card.data.tags
    assert card.data.configs == [{"config_name": "default", "data_files": [{"split": "train", "path": "train/**"}]}]
    for label, count in COUNTS.items():
        assert f"| {label} | {count} | {16 - count} |" in card.text
    assert facesynth("balance", src, *QUICK, "--synthetic-only", "--out", tmp_path / "only").code == 0
    assert "which are not part of it" in DatasetCard.load(tmp_path / "only/README.md").text


def test_the_csv_form_makes_the_same_faces_as_the_folders(tmp_path: Path, facesynth: Command) -> None:
    write_csv(tmp_path / "faces.csv", COUNTS)
    assert facesynth("balance", tmp_path / "faces.csv", *QUICK).code == 0
    for label, count in COUNTS.items():
        (tmp_path / "faces" / label).mkdir(parents=True)
        for person in range(count):
            Image.fromarray(draw(label, person)).save(tmp_path / "faces" / label / f"im{person}.png")
    assert facesynth("balance", tmp_path / "faces", *QUICK, "--out", tmp_path / "more").code == 0
    made = tree(tmp_path / "more")
    del made["README.md"]  # the card lies above the training folder
    assert tree(tmp_path / "faces-balanced/train") == made


def test_no_name_is_given_twice(src: Path, facesynth: Command) -> None:
    assert facesynth("balance", src, *QUICK).code == 0
    first, second = src.with_name("faces-balanced"), src.with_name("more")
    (first / "metadata.csv").unlink()  # then nothing tells which of its images are synthetic
    assert facesynth("balance", first, "-t", "uniform:18", *QUICK, "--out", second).code == 0
    images = {name: digest for name, digest in tree(first).items() if name.endswith(".png")}
    assert images.items() <= tree(second).items()
    assert Counter(path.parent.name for path in second.rglob("*.png")) == dict.fromkeys(COUNTS, 18)


WRITTEN_LIKE = {
    "16-bit": ("I;16", ".png", 48, {}),
    "alpha": ("RGBA", ".png", 60, {}),
    "jpeg": ("RGB", ".jpg", 48, {"quality": 61, "subsampling": 2}),
    "large": ("RGB", ".jpg", 200, {"quality": 90}),
}


@pytest.mark.parametrize("kind", WRITTEN_LIKE)
def test_synthetic_files_are_written_like_their_sources(kind: str, tmp_path: Path, facesynth: Command) -> None:
    mode, suffix, size, options = WRITTEN_LIKE[kind]
    for label, count in {"happy": 12, "neutral": 12, "surprise": 8}.items():
        (tmp_path / "faces" / label).mkdir(parents=True)
        for person in range(count):
            image = Image.fromarray(draw(label, 40 * len(label) + person, size, colour=mode != "I;16"))
            if mode == "I;16":
                image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
            image.convert(mode).save(tmp_path / "faces" / label / f"{person}{suffix}", **options)
    ended = facesynth("balance", tmp_path / "faces", "--identity", "builtin", "--workers", 1)
    assert ended.code == 0, ended.err
    for row in synthetic(tmp_path / "faces-balanced"):
        made = Image.open(tmp_path / "faces-balanced" / row["file_name"])
        source = Image.open(tmp_path / "faces" / row["source"])
        assert (made.format, made.mode, made.size) == (source.format, source.mode, source.size)
        assert getattr(made, "quantization", None) == getattr(source, "quantization", None)
        assert not np.array_equal(np.asarray(made), np.asarray(source))
        if mode == "RGBA":
            assert np.array_equal(np.asarray(made)[:, :, 3], np.asarray(source)[:, :, 3])


def test_no_source_is_used_again_before_every_other_has_been_tried(src: Path, facesynth: Command) -> None:
    assert facesynth("balance", src, "-t", "uniform:30", *QUICK).code in (0, 3)
    for label, eligible in {"happy": 22, "neutral": 16, "surprise": 26}.items():
        tried = Counter(row["source"] for row in attempts(src.with_name("faces-balanced")) if row["label"] == label)
        assert not any(source.startswith(f"{label}/") for source in tried)
        fewest = min(tried.values()) if len(tried) == eligible else 0
        assert max(tried.values()) <= fewest + 1


def test_synthetic_only_and_links(src: Path, facesynth: Command) -> None:
    assert facesynth("balance", src, *QUICK, "--synthetic-only", "-o", src.with_name("only")).code == 0
    assert len(list(src.with_name("only").rglob("*.png"))) == len(table(src.with_name("only"))) == 16
    assert facesynth("balance", src, *QUICK, "--link", "-o", src.with_name("linked")).code == 0
    assert all(path.samefile(src.with_name("linked") / path.relative_to(src)) for path in src.rglob("*.png"))
    made = tree(src.with_name("only"))
    del made["metadata.csv"], made["README.md"]
    assert made.items() <= tree(src.with_name("linked")).items()


def test_the_python_surface_returns_what_was_made(src: Path, tiny: Tiny) -> None:
    weights = {"generator": str(tiny.editor), "judge": str(tiny.judge)}
    result = package.balance(src, "surprise=8", identity="off", workers=1, out=src.with_name("x"), **weights)
    assert result.synthetic == {"happy": 0, "neutral": 0, "surprise": 2}
    assert result.short == {}
    assert result.tried >= 2
    assert result.report is not None
    assert result.report.is_file()


# --- stopping and going on -------------------------------------------------------------------------------------------

# Runs the command in one child after the other; each dies at the next write of its own that is due.
KILLER = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv.pop(1))
moments, name, arguments = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
import command, torch, facesynth.balancing, facesynth.manifest
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
replace = pathlib.Path.replace
for moment in moments:
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        continue
    left = int(moment)
    def counted(path, target):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), getattr(signal, name))
        return replace(path, target)
    pathlib.Path.replace = counted
    sys.argv = ["facesynth", *arguments]
    command.cli.main()
    os._exit(0)
"""


def run_and_stop(tiny: Tiny, signal: str, moments: list[int], *arguments: object) -> tuple[list[int], str]:
    """Exit codes of runs that get a signal at their n-th write, and what they said."""
    command = [sys.executable, "-c", KILLER, tiny.folder, ",".join(map(str, moments)), signal, *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()], done.stderr


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(
    src: Path, tiny: Tiny, undisturbed: dict[str, str]
) -> None:
    moments = [1, 2, 3, 4, *np.random.default_rng(0).integers(2, 14, 16).tolist(), 10_000]
    codes, said = run_and_stop(tiny, "SIGKILL", moments, "balance", src, *QUICK, "--on-existing", "resume")
    assert codes[0] == -9
    assert codes.count(-9) >= 8, said
    assert codes[-1] == 0, said
    assert outcome(src.with_name("faces-balanced")) == undisturbed


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(
    src: Path, tiny: Tiny, facesynth: Command, undisturbed: dict[str, str]
) -> None:
    codes, said = run_and_stop(tiny, "SIGINT", [45], "balance", src, *QUICK)
    assert codes == [130]
    assert "--on-existing resume" in said
    assert "Traceback" not in said
    assert not list(src.parent.rglob(".facesynth-*"))
    assert facesynth("balance", src, *QUICK, "--on-existing", "resume").code == 0
    assert outcome(src.with_name("faces-balanced")) == undisturbed


def test_two_processes_make_the_same_bytes_as_one(src: Path, tiny: Tiny, undisturbed: dict[str, str]) -> None:
    several = [*QUICK[:2], "--workers", "2", *QUICK[4:]]
    assert subprocess.run([sys.executable, tiny.script, "balance", src, *several]).returncode == 0
    assert outcome(src.with_name("faces-balanced")) == undisturbed


@pytest.mark.parametrize(
    "name", ["run.json", "reference", "im3.png", "000002-00.png", "shard-00000.jsonl", "synthetic-000004.png",
             "metadata.csv", "report.html", "result.json"],
)  # fmt: skip
def test_a_write_that_fails_is_a_clear_error_and_loses_nothing(
    name: str, src: Path, facesynth: Command, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, str]
) -> None:
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        ended = facesynth("balance", src, *QUICK)
    assert ended.code == 1
    assert name in ended.err
    assert "No space left on device" in ended.err
    assert "Traceback" not in ended.err
    assert not list(src.parent.rglob(".facesynth-*"))
    assert facesynth("balance", src, *QUICK, "--on-existing", "resume").code == 0
    assert outcome(src.with_name("faces-balanced")) == undisturbed


def test_an_output_that_is_there(src: Path, facesynth: Command) -> None:
    assert facesynth("balance", src, *QUICK, "-t", "surprise=8").code == 0
    out = src.with_name("faces-balanced")
    made = outcome(out)
    again = facesynth("balance", src, *QUICK, "-t", "surprise=8")
    assert (again.code, "--on-existing resume" in again.err) == (2, True)
    finished = facesynth("balance", src, *QUICK, "-t", "surprise=8", "--on-existing", "resume", "--json")
    assert finished.code == 0
    assert "nothing left to do" in finished.err
    assert json.loads(finished.out)["synthetic"]["surprise"] == 2
    other = facesynth("balance", src, *QUICK, "-t", "surprise=9", "--seed", 1, "--on-existing", "resume")
    assert other.code == 2
    assert "(seed, target)" in other.err
    assert outcome(out) == made
    assert facesynth("balance", src, *QUICK, "-t", "surprise=9", "--on-existing", "overwrite").code == 0
    assert len(synthetic(out)) == 3


@pytest.mark.parametrize("policy", ["fail", "resume", "overwrite"])
def test_a_folder_that_is_not_ours_stays_as_it_is(policy: str, src: Path, facesynth: Command) -> None:
    precious = src.with_name("faces-balanced") / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    ended = facesynth("balance", src, *QUICK, "--on-existing", policy)
    assert ended.code == 2
    assert "another --out" in ended.err
    assert [path.name for path in precious.parent.iterdir()] == ["precious.txt"]


# --- what goes wrong on the way --------------------------------------------------------------------------------------


def test_a_target_out_of_reach_ends_with_3_and_keeps_what_passed(src: Path, facesynth: Command) -> None:
    ended = facesynth("balance", src, *QUICK, "--target", "uniform:24", "--max-attempts", 1, "--json")
    assert ended.code == 3
    assert "--max-attempts" in ended.err
    result = json.loads(ended.out)
    made = sum(result["synthetic"].values())
    assert made > 0
    assert sum(result["short"].values()) == 72 - 32 - made
    assert len(synthetic(src.with_name("faces-balanced"))) == made


def test_a_corrupt_source_is_reported_and_left_out(src: Path, facesynth: Command) -> None:
    broken = src / "neutral/im12.png"
    broken.write_bytes(broken.read_bytes()[:300])
    ended = facesynth("balance", src, *QUICK)
    assert ended.code == 0
    assert str(broken) in ended.err
    rows = table(src.with_name("faces-balanced"))
    assert Counter(row["label"] for row in rows) == dict.fromkeys(COUNTS, 15)
    assert not any("neutral/im12.png" in (row["file_name"], row["source"]) for row in rows)
    assert not (src.with_name("faces-balanced") / "neutral/im12.png").exists()


def test_sources_that_vanish_while_faces_are_made_cost_nothing_else(
    src: Path, facesynth: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = pipeline.copy_real

    def copy_then_lose(*arguments: Any) -> None:
        copy(*arguments)
        for path in sorted((src / "neutral").iterdir())[::2]:
            path.unlink()

    monkeypatch.setattr(pipeline, "copy_real", copy_then_lose)
    ended = facesynth("balance", src, *QUICK, "--json")
    assert ended.code == 0
    result = json.loads(ended.out)
    assert result["synthetic"] == MISSING | {"neutral": 0}
    assert sum(reasons.get("source: unreadable", 0) for reasons in result["rejected"].values()) > 0


def test_a_real_image_that_vanishes_before_it_is_copied_is_named(
    src: Path, facesynth: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, lost = pipeline.copy_real, src / "happy/im3.png"
    monkeypatch.setattr(pipeline, "copy_real", lambda *arguments: (lost.unlink(), copy(*arguments)))
    ended = facesynth("balance", src, *QUICK)
    assert ended.code == 1
    assert str(lost) in ended.err


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "augment", "balance", "evaluate"])
def test_every_command_explains_its_options(facesynth: Command, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ended = facesynth(command, "--help")
    assert ended.code == 0, ended.err
    assert "--device" in ended.out
    assert ("hf://org/name[@revision][/file]" in ended.out) == (command in ("augment", "balance"))


def test_a_dry_run_shows_the_plan_and_loads_no_network(src: Path) -> None:
    code = """
import sys
from facesynth import cli
for arguments in (["balance", sys.argv[1], "-t", "0.75", "--dry-run", "--json"],
                  ["augment", sys.argv[1], "--expressions", "all", "--dry-run"], ["--help"]):
    sys.argv[1:] = arguments
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code, src], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout.splitlines()[0])
    assert plan["target"] == {"happy": 12, "neutral": 16, "surprise": 12}
    assert ["surprise", "6", "12", "6"] in [line.split() for line in done.stderr.splitlines()]
    assert [path.name for path in src.parent.iterdir()] == ["faces"]


def test_quiet_is_silent(src: Path, facesynth: Command) -> None:
    assert facesynth("balance", src, *QUICK, "-q") == Ended(0, "", "")


def _flags(*flags: object) -> Callable[[Path], list[object]]:
    return lambda src: [src, *QUICK, *flags]


def _class(name: str) -> Callable[[Path], list[object]]:
    def arrange(src: Path) -> list[object]:
        (write_tree(src.parent / "more", {"sad": 2}) / "sad").rename(src / name)
        return [src, *QUICK]

    return arrange


def _weights(data: bytes) -> Callable[[Path], list[object]]:
    def arrange(src: Path) -> list[object]:
        (src.parent / "w.safetensors").write_bytes(data)
        return [src, *QUICK, "--generator", src.parent / "w.safetensors"]

    return arrange


def _table(text: str) -> Callable[[Path], list[object]]:
    def arrange(src: Path) -> list[object]:
        (src.parent / "t.csv").write_text(text)
        return [src.parent / "t.csv", *QUICK]

    return arrange


def _only(*names: str) -> Callable[[Path], list[object]]:
    def arrange(src: Path) -> list[object]:
        for label in set(COUNTS) - set(names):
            for path in (src / label).iterdir():
                path.unlink()
            (src / label).rmdir()
        return [src, *QUICK]

    return arrange


WRONG: dict[str, tuple[Callable[[Path], list[object]], int, str]] = {
    "missing": (lambda src: [src / "nowhere"], 2, "does not exist"),
    "empty": (_only(), 2, "is empty"),
    "one class": (_only("happy"), 2, "has one class only (happy)"),
    "class like a split": (_class("test"), 2, "is named like a split"),
    "unknown class": (_class("smirk"), 2, "does not know the class 'smirk'"),
    "unknown target": (_flags("-t", "hapy=40"), 2, "Did you mean 'happy'"),
    "target below": (_flags("-t", "neutral=3"), 2, "16"),
    "negative target": (_flags("-t", "happy=-4"), 2, "-4"),
    "nothing to do": (_flags("-t", "neutral=16"), 2, "nothing to balance"),
    "output inside": (lambda src: [src, "-o", src / "out"], 2, "inside the source"),
    "device": (_flags("--device", "cuda:99"), 2, "--device cuda:99 cannot be used"),
    "no such device": (_flags("--device", "abacus"), 2, "--device"),
    "intensity": (_flags("--intensity", "1,0.5"), 2, "--intensity: 1 is above 0.5"),
    "intensity range": (_flags("--intensity", "0,2"), 2, "--intensity"),
    "identity": (_flags("--identity", "passport"), 2, "--identity"),
    "unknown weights": (_flags("--generator", "edtor-48"), 2, "Did you mean 'editor-48'"),
    "no such weights": (_flags("--generator", "w/none.safetensors"), 1, "no such weights file"),
    "other weights": (_flags("--generator", "judge-48"), 1, "holds a classifier"),
    "broken weights": (_weights(b"\x10\0\0\0\0\0\0\0{"), 1, "not a readable safetensors file"),
    "pickled weights": (_weights(b"\x80\x04N."), 1, "never opened"),
    "columns": (_table("emotion,Usage\n3,Training\n"), 1, "no column pixels"),
    "pixels": (_table("emotion,pixels,Usage\n3,1 2 3,Training\n"), 1, "3 pixels"),
    "label": (_table("emotion,pixels,Usage\n9,1 2 3 4,Training\n"), 1, "emotion '9'"),
    "preset": (_flags("--preset", "nothing.yaml"), 2, "nothing.yaml"),
    "unknown flag": (_flags("--tarpet", "x"), 2, "--target"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_has_its_own_message_and_exit_code(case: str, src: Path, facesynth: Command) -> None:
    arrange, code, message = WRONG[case]
    ended = facesynth("balance", *arrange(src))
    assert ended.code == code, ended.err
    assert message in ended.err
    assert "Traceback" not in ended.err + ended.out
    assert ended.out == ""
    assert not src.with_name("faces-balanced").exists()


def test_a_judge_that_lacks_a_class_is_told_from_a_generator_that_does(
    src: Path, tiny_generator: Path, facesynth: Command
) -> None:
    ended = facesynth("augment", *_class("smirk")(src), "--method", "classic")
    assert ended.code == 2
    assert "the judge judge-48 does not know the class 'smirk'" in ended.err
    assert "facesynth train SRC --preset judge-48" in ended.err
    ended = facesynth("balance", src, *QUICK, "--soft-labels", "--generator", tiny_generator, "--target", "happy=12")
    assert ended.code == 2
    assert "the judge judge-48 does not know the class 'smirk'" in ended.err
