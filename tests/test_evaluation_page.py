"""The page of an evaluation: says everything it was given, is safe against hostile names, and fits a phone."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pages import Page, needs_chromium, open_page

from facesynth import significance
from facesynth.evaluation import (
    SCHEMA_VERSION,
    ArmResult,
    Bias,
    Claim,
    Comparison,
    Copies,
    Doubt,
    Doubts,
    Evaluation,
    Fidelity,
    Group,
    Histogram,
    Identity,
    Intensity,
    IntensityBin,
    Interval,
    Leak,
    Leakage,
    Metric,
    Neighbour,
    Point,
    Safety,
    Uplift,
)  # fmt: skip
from facesynth.evaluation_page import DoubtedFace, Face, LeakPair, NeighbourPair, Pictures, render_page, write_page

CLASSES = ["angry", "disgust", "happy"]
TITLES = {"real": "Real images", "strong": "Real, strong augmentation", "rare": "Synthetic in rare classes"}


def interval(value: float, half: float = 0.02) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def histogram(center: float) -> Histogram:
    values = np.random.default_rng(0).normal(center, 0.08, 500).clip(-1, 1)
    counts, edges = np.histogram(values, 40, (-1, 1))
    return Histogram(edges=edges.tolist(), counts=counts.tolist(), median=float(np.median(values)))


def make_fidelity() -> Fidelity:
    figures = {
        "fid": Metric(value=31.27, floor=4.81, images=900, real_images=1400),
        "kid": Metric(value=0.0213, floor=0.0004, images=900, real_images=1400, note="subsets of 450 images"),
        "coverage": Metric(value=0.62, floor=0.91, images=900, real_images=1400),
        "recall": Metric(value=None, floor=None, images=3, real_images=5, note="needs six images"),
    }
    random = np.random.default_rng(1)
    labels = np.arange(300) % 3
    read = np.where(random.random(300) < 0.7, labels, random.integers(0, 3, 300))
    recognition = significance.recognition(labels, read, CLASSES)
    bins = [IntensityBin(low=k / 4, high=(k + 1) / 4, images=50, probability=0.3 + 0.15 * k) for k in range(4)]
    return Fidelity(
        features="the built-in judge (judge-48)",
        overall=figures,
        per_class=dict.fromkeys(CLASSES, figures),
        gan_test=recognition,
        gan_train=recognition,
        real_baseline=recognition,
        identity=Identity(
            model="facepack", genuine=histogram(0.7), impostors=histogram(0.05), threshold=0.41, same_person=0.93,
            per_class=dict.fromkeys(CLASSES, 0.93), pairs=812,
        ),
        intensity={
            "disgust": Intensity(bins=bins, rank_correlation=0.44),
            "angry": Intensity(bins=[], rank_correlation=None, note="one intensity alone"),
        },
        notes=["Inception's weights were not there."],
    )  # fmt: skip


def make_safety() -> Safety:
    leak = Leak(kind="source of a synthetic image", image="angry/s.png", of="angry/t.png", split="test",
                similarity=0.991, identical=True)  # fmt: skip
    group = Group(
        column="sex", group="female", share_before=interval(0.44), share_after=interval(0.51), acceptance=interval(0.3),
        source_reuse=2.4, accuracy_before=interval(0.66), accuracy_after=None,
        confusion_before=[[5, 1, 0], [2, 3, 1], [0, 0, 0]], confusion_after=[[5, 1, 0], [2, 3, 1], [0, 0, 9]],
    )  # fmt: skip
    return Safety(
        copies=Copies(
            images=900, copies=4, share=4 / 900, real_share=0.021, threshold=0.97,
            synthetic_similarity=histogram(0.7), real_similarity=histogram(0.5),
            nearest=[make_neighbour()],
        ),
        leakage=Leakage(
            counts={"synthetic image in test": 2, "real training image in test": 5}, leaks=[leak],
            test_copies=["angry/t.png"], identical_test_copies=["angry/t.png"], label_conflicts=1,
        ),
        labels=Doubts(checked=1400, counts={"angry": 7}, images=[make_doubt()]),
        bias=Bias(origin="the attribute model", groups=[group], sentences=["Women are 44 % before and 51 % after."]),
        notes=["Two files could not be read."],
    )  # fmt: skip


def make_neighbour() -> Neighbour:
    return Neighbour(synthetic="disgust/f.png", real="disgust/r.png", split="train", similarity=0.982, is_source=True)


def make_doubt() -> Doubt:
    return Doubt(
        image="angry/d.png", split="train", label="angry", read_as="happy", probability=0.97, own_probability=0.01
    )


@cache
def make_uplift(images: int = 600, skill: float = 0.1) -> Uplift:
    """Three arms with real statistics: the one with synthetic images reads `skill` more of the images rightly."""
    random = np.random.default_rng(2)
    labels = random.choice(3, images, p=[0.4, 0.1, 0.5])
    bootstrap = significance.Bootstrap(labels, CLASSES, resamples=100)
    arms = {}
    for name, rate in {"real": 0.6, "strong": 0.62, "rare": 0.62 + skill}.items():
        read = np.where(random.random((3, images)) < rate, labels, (labels + 1) % 3)
        arms[name] = bootstrap.arm(read)
    differences = significance.differences(arms["rare"], arms["strong"])
    comparisons = [
        Comparison(
            arm="rare", against="strong", test_set="all", metric=metric, difference=found.interval, mcnemar=0.003
        )
        for metric, found in differences.items()
    ]
    claims = [
        Claim(
            sentence=f"Synthetic in rare classes against strong augmentation, {metric}",
            verdict=significance.verdict(differences[metric]),
            comparison=next(found for found in comparisons if found.metric == metric),
            needed=significance.needed(differences[metric]),
        )
        for metric in ("macro_f1", "f1.disgust")
    ]
    results = [
        ArmResult(
            name=name, title=TITLES[name], uses_synthetic=name == "rare", settings={"sampling": "natural"}, validation=0.6,
            prior_strength=-0.25,
            scores={"all": significance.arm_scores(arm), "no copies": significance.arm_scores(arm)}, per_seed={},
        )
        for name, arm in arms.items()
    ]  # fmt: skip
    points = [
        Point(kind="fraction", value=value, real_images=int(1400 * value), synthetic_images=900, arm="rare", against="strong",
              arm_macro_f1=interval(0.5 + value / 10), against_macro_f1=interval(0.4 + value / 5), difference=interval(0.05))
        for value in (0.1, 0.5, 1.0)
    ]  # fmt: skip
    return Uplift(
        classifier="ResNet-18", steps=4000, batch_size=64, seeds=[0, 1, 2], test="the test split",
        test_images={"all": images, "no copies": images - 9}, real_images=1400, validation_images=140, synthetic_images=900,
        best_with="rare", best_without="strong", synthetic_weight=0.5, arms=results, comparisons=comparisons, claims=claims,
        points=points, notes=[significance.width_note(differences["macro_f1"])],
    )  # fmt: skip


def make_evaluation(**changes: object) -> Evaluation:
    counts = {"angry": 400, "disgust": 100, "happy": 900}
    evaluation = Evaluation(
        facesynth="1.0",
        real="faces",
        synthetic="faces-balanced",
        classes=CLASSES,
        counts={"train": counts, "test": counts, "synthetic": {"angry": 300, "disgust": 600}},
        fidelity=make_fidelity(),
        safety=make_safety(),
        uplift=make_uplift(),
        verdict=["Good? Nearly as good as real ones.", "Safe? Four are copies.", "Do they help? They helped."],
        settings={"seeds": 3, "features": "judge"},
        warnings=["two files could not be read"],
    )
    return evaluation.model_copy(update=changes)


def make_pictures(name: str = "disgust/f.png") -> Pictures:
    ramp = np.linspace(0, 1, 48 * 48, dtype=np.float32).reshape(48, 48)
    leak = make_safety().leakage.leaks[0]
    return Pictures(
        gallery=[
            Face(ramp, "disgust", name, {"expression": 0.91, "identity": None}),
            Face(ramp, "disgust", "disgust/g.png", {"expression": 0.4}, reason="expression: reads as another class"),
            Face(ramp, "angry", "angry/h.png", {"expression": 0.7, "identity": float("nan")}),
        ],
        neighbours=[NeighbourPair(ramp, 1 - ramp, make_neighbour())],
        leaks=[LeakPair(ramp, ramp, leak)],
        doubts=[DoubtedFace(ramp, make_doubt())],
    )


def test_page_says_what_was_found() -> None:
    text = render_page(make_evaluation(), make_pictures())
    page = Page(text)
    assert page.open == []
    assert page.is_self_contained()
    for expected in [
        "The synthetic images helped",
        "Safe? Four are copies.",
        "the built-in judge (judge-48)",
        "31.27 900 4.81 1,400",
        "KID of all classes, angry, disgust, happy: subsets of 450 images",
        "GAN-train",
        "93% of 812 synthetic images",
        "one intensity alone",
        "ResNet-18, 4,000 steps of 64 images and 3 seeds",
        "Before: Real, strong augmentation",
        "After: Synthetic in rare classes",
        "4 of 900 synthetic images (<1%) are near-copies",
        "0.98, its own source",
        "source of a synthetic image, identical",
        "labelled angry reads happy 0.97",
        "44.0 42.0–46.0",
        "Women are 44 % before and 51 % after.",
        "two files could not be read",
        f"schema {SCHEMA_VERSION}",
    ]:
        assert expected in page.text, expected
    assert all(image["alt"] for image in page.all("img"))
    assert all(chart["aria-label"] for chart in page.all("svg"))
    assert len(page.all("svg")) == 6  # two of the arms, one sweep, copies, identity and intensity


def test_figures_that_were_not_measured_are_dashes_with_their_reason() -> None:
    text = Page(render_page(make_evaluation(), Pictures())).text
    assert "— 3 — 5" in text
    assert "Recall of all classes, angry, disgust, happy: needs six images" in text
    assert "No pictures were kept." in text


def test_without_uplift_the_page_says_how_to_ask_for_it() -> None:
    bare = make_fidelity().model_copy(update={"identity": None, "intensity": {}, "gan_test": None, "notes": []})
    safety = make_safety().model_copy(update={"labels": None, "bias": None})
    page = Page(render_page(make_evaluation(uplift=None, verdict=[], fidelity=bare, safety=safety), Pictures()))
    assert "--uplift" in page.text
    assert "Not measured" in page.text
    assert not page.all("script")
    assert page.is_self_contained()


def test_a_verdict_that_cannot_be_told_says_how_much_data_would_tell() -> None:
    text = Page(render_page(make_evaluation(uplift=make_uplift(images=60, skill=0.05)), Pictures())).text
    assert "cannot be told at this size" in text
    assert "60 test images and 3 seeds tell" in text


def test_names_are_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&$x$\\1"
    lost = "caf\udce9"
    classes = [hostile, lost, "happy"]
    evaluation = json.loads(make_evaluation().model_dump_json().replace('"angry"', json.dumps(hostile)))
    evaluation["classes"] = classes
    evaluation["uplift"]["arms"][0]["title"] = evaluation["synthetic"] = hostile
    evaluation["fidelity"]["intensity"] = dict.fromkeys(classes, evaluation["fidelity"]["intensity"]["disgust"])
    write_page(tmp_path / "report.html", Evaluation.model_validate(evaluation), make_pictures(hostile))
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert len(page.all("script")) == 1
    assert page.open == []
    assert page.text.count(hostile) > 20
    assert r"caf\udce9" in page.text


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_window_and_its_filter_filters(tmp_path: Path, width: int) -> None:
    long_name = "x" * 200
    evaluation = make_evaluation(synthetic=long_name, settings={"source": f"/{long_name}"})
    question = """(() => {
        const form = page.getElementById('filter');
        const shown = () => [...page.querySelectorAll('#faces .face')].filter(face => face.offsetParent).length;
        const counts = [shown()];
        for (const [name, value] of [['label', 'disgust'], ['reason', 'accepted'], ['lowest', '0.95']]) {
            form.elements[name].value = value;
            form.dispatchEvent(new Event('input'));
            counts.push(shown());
        }
        return counts.join() + ' ' + page.getElementById('shown').textContent;
    })()"""
    opened = open_page(tmp_path, render_page(evaluation, make_pictures(f"disgust/{long_name}.png")), width, question)
    assert opened.needed <= opened.visible <= width
    assert opened.height > 3000
    assert opened.broken_images == 0
    assert opened.answer == "3,2,1,0 0 of 3"
