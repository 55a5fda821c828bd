"""The report page: complete, self-contained, safe against hostile names, and legible on a phone."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import Page, needs_chromium, open_page
from PIL import Image

from facesynth.report import GateScores, Pair, Report, render_report, write_report

CLASSES = ["angry", "disgust", "happy"]


def make_pair(label: str = "disgust", reason: str | None = None, name: str = "disgust/a.png", side: int = 48) -> Pair:
    ramp = np.linspace(0, 1, side * side, dtype=np.float32).reshape(side, side, 1)
    scores = {"expression": 0.91, "identity": None if reason else 0.71}
    return Pair(
        source=ramp, result=1 - ramp, source_label="happy", label=label, scores=scores, name=name, reason=reason
    )


def make_report() -> Report:
    scores = np.linspace(0, 1, 200)
    return Report(
        title="faces-balanced",
        command="balance",
        classes=CLASSES,
        real={"angry": 300, "disgust": 40, "happy": 1000},
        synthetic={"angry": 700, "disgust": 960, "happy": 0},
        target=dict.fromkeys(CLASSES, 1000),
        accepted=[make_pair("angry", name="angry/a.png"), make_pair("disgust")],
        rejected=[make_pair("disgust", "expression: reads as another class", "happy/b.png")],
        rejections={"disgust": {"expression: reads as another class": 240, "quality: blurred": 3}},
        gates={
            "expression": GateScores(scores[100:], scores[:100], {"angry": 0.5, "disgust": 0.25}, about="certainty"),
            "identity": GateScores(np.append(scores[124:], np.nan), scores[:20], threshold=0.62),
        },
        settings={"target": "uniform", "intensity": [0.8, 1.0], "identity_model": None},
        provenance={"generator": "editor-48", "versions": {"facesynth": "0.1.0"}, "seed": 7},
        warnings=["the built-in embedder was used"],
        licence="For research only.",
    )


def test_page_shows_counts_reasons_scores_and_settings() -> None:
    page = Page(render_report(make_report()))
    assert page.open == []
    for expected in [
        "1,340 real + 1,660 synthetic",
        "Every class at 1,000",
        "candidates tried 1,903",
        "expression: reads as another class",
        "240 20%",
        "quality: blurred",
        "happy → disgust",
        "angry 0.50 · disgust 0.25",
        "76 accepted",
        "0.8, 1.0",
        "facesynth 0.1.0",
        "the built-in embedder was used",
        "For research only.",
        "not a photograph",
    ]:
        assert expected in page.text, expected


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        ({"angry": 700, "disgust": 960}, "every class at 1,000"),
        ({"angry": 700, "disgust": 512}, "short of the target: disgust 512 of 960"),
        ({}, "short of the target: angry 0 of 700, disgust 0 of 960"),
    ],
)
def test_verdict_names_every_shortfall(made: dict[str, int], verdict: str) -> None:
    report = replace(make_report(), synthetic=made)
    assert report.verdict == verdict
    text = Page(render_report(report)).text
    assert verdict[1:] in text
    assert ("missing" in text) == ("short" in verdict)


def test_verdict_of_unequal_targets_and_of_many_shortfalls() -> None:
    shares = replace(make_report(), synthetic={"angry": 100}, target={"angry": 400, "disgust": 40, "happy": 1000})
    assert shares.verdict == "every class at its target"
    names = [f"c{i}" for i in range(5)]
    many = replace(shares, classes=names, real=dict.fromkeys(names, 1), target=dict.fromkeys(names, 9), synthetic={})
    assert many.verdict == "short of the target: c0 0 of 8, c1 0 of 8, c2 0 of 8 and 2 more"


def test_page_is_self_contained_and_its_pictures_have_words() -> None:
    page = Page(render_report(make_report()))
    assert not page.all("script")
    assert page.is_self_contained()
    assert "url(" not in render_report(make_report())
    assert len(page.all("img")) == 6
    assert all(image["alt"] for image in page.all("img"))
    assert all("Histogram of" in (chart["aria-label"] or "") for chart in page.all("svg"))


def test_names_are_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&.png"
    pairs = [make_pair(name=hostile), make_pair(name="caf\udce9.png")]
    report = replace(make_report(), title=hostile, accepted=pairs, warnings=[hostile], settings={hostile: hostile})
    write_report(tmp_path / "report.html", report)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert not page.all("script")
    assert page.text.count(hostile) >= 5
    assert r"caf\udce9.png" in page.text


def pictures(pair: Pair) -> list[Image.Image]:
    page = Page(render_report(replace(make_report(), accepted=[pair], rejected=[])))
    contents = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in page.all("img")]
    return [Image.open(io.BytesIO(content)) for content in contents]


def test_small_faces_are_shown_without_loss() -> None:
    pair = make_pair()
    source, result = pictures(pair)
    assert np.array_equal(np.asarray(source), np.rint(255 * pair.source[:, :, 0]))
    assert np.array_equal(np.asarray(result), np.rint(255 * pair.result[:, :, 0]))


def test_large_faces_become_thumbnails_that_keep_colour_and_shape() -> None:
    photo = np.zeros((300, 600, 3), dtype=np.float32)
    photo[:, :, 0] = 1.5  # beyond white is white, not black
    source, _ = pictures(replace(make_pair(), source=photo, result=photo))
    assert source.size == (192, 96)
    assert np.allclose(np.asarray(source.convert("RGB"))[50, 50], [255, 0, 0], atol=3)


def test_threshold_line_stands_between_accepted_and_rejected() -> None:
    gate = GateScores(accepted=np.array([0.7, 0.8, 0.9, 40.0]), rejected=np.array([0.3, 0.4]), threshold=0.62)
    text = render_report(replace(make_report(), gates={"identity": gate}))
    (line,) = [element for element in Page(text).all("line") if element["class"] == "threshold"]

    def bars(kind: str) -> list[float]:
        (path,) = [element["d"] for element in Page(text).all("path") if element["class"] == kind]
        return [float(x) for x in re.findall(r"M(\S+)", path or "")]

    assert max(bars("rejected")) < float(line["x1"] or "nan") <= min(bars("accepted")) + 9


def test_run_without_gates_or_work_has_a_page_too() -> None:
    counts = {"angry": 5, "disgust": 5}
    report = Report("same", "balance", ["angry", "disgust"], real=counts, synthetic={}, target=counts)
    text = Page(render_report(report)).text
    for expected in ("Every class at 5", "Nothing had to be made", "No gate was asked", "no candidate was turned down"):
        assert expected in text
    no_scores = replace(make_report(), gates={"identity": GateScores(np.array([]), np.array([np.nan]))})
    assert "No scores." in Page(render_report(no_scores)).text


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_window(tmp_path: Path, width: int) -> None:
    long_name = "x" * 200
    pairs = [make_pair(name=f"disgust/{long_name}.png"), make_pair("angry")]
    report = replace(make_report(), title=long_name, accepted=pairs, settings={"source": f"/{long_name}"})
    opened = open_page(tmp_path, render_report(report), width)
    assert opened.needed <= opened.visible <= width
    assert opened.height > 1500
    assert opened.broken_images == 0
