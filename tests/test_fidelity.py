"""What each figure means, on clouds of features whose truth is known; and that the figures are torch-fidelity's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny
from faces import write_tree
from torch import Tensor

from facesynth.dataset import Dataset, Sample
from facesynth.evaluation import METRICS, Fidelity, Metric
from facesynth.expression import load_judge
from facesynth.extractors import JudgeExtractor
from facesynth.fidelity import Vectors, compare, intensity, measure
from facesynth.imageset import ImageSet, SyntheticSet, read_real, read_synthetic

Array = np.ndarray
CLASSES = ("angry", "happy")
DIMENSIONS = 16
MODES = np.random.default_rng(7).normal(0, 1, (10, DIMENSIONS))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACESYNTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _set(features: Array, labels: Array | None = None, classes: tuple[str, ...] = CLASSES, **more: Any) -> SyntheticSet:
    """Images that have these features (N, D); equal features are equal images."""
    labels = np.zeros(len(features), np.int64) if labels is None else labels
    samples = tuple(Sample("train", f"{classes[k]}/im{i}.png", classes[k]) for i, k in enumerate(labels))
    digests = [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in features]
    nothing = np.zeros((len(features), 1))
    known: dict[str, Any] = {
        "sources": (None,) * len(features),
        "source_labels": (None,) * len(features),
        "intensities": np.full(len(features), np.nan),
        "weights": np.ones(len(features)),
    }
    return SyntheticSet(
        dataset=Dataset(Path("made"), "folder", classes, {"train": list(samples)}, {"train": ""}, []),
        samples=samples,
        classes=classes,
        labels=labels,
        crops=nothing,
        descriptors=nothing,
        digests=np.array(digests, "S16"),
        features={"f": features.astype(np.float32)},
        logits={"f": 4 * features[:, :4].astype(np.float32)},
        **(known | more),
    )


def _faces(count: int, seed: int) -> Array:
    """Features of `count` images: ten modes, as of persons, with some spread around each."""
    rng = np.random.default_rng(seed)
    return MODES[rng.integers(10, size=count)] + rng.normal(0, 0.3, (count, DIMENSIONS))


def _values(figures: dict[str, Metric]) -> dict[str, float]:
    assert all(metric.value is not None for metric in figures.values())
    return {name: metric.value for name, metric in figures.items() if metric.value is not None}


def _compare(real: Array, synthetic: Array, kid_size: int = 50) -> dict[str, Metric]:
    return compare(Vectors.of(_set(real), "f"), Vectors.of(_set(synthetic), "f"), kid_size)


def _overall(real: Array, synthetic: Array) -> dict[str, float]:
    return _values(_compare(real, synthetic))


@pytest.fixture(scope="module")
def real() -> Array:
    return _faces(800, seed=0)


# --- what the figures mean --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [400, 80])
def test_fresh_real_images_come_near_the_floor_whatever_their_number(real: Array, count: int) -> None:
    figures = _compare(real, _faces(count, seed=3))
    for name in ("precision", "recall", "density", "coverage", "diversity", "inception_score"):
        value, floor = figures[name].value, figures[name].floor
        assert value == pytest.approx(floor, rel=0.2), name
    assert _values(figures)["fid"] < 1.5 * (figures["fid"].floor or 0)
    assert abs(_values(figures)["kid"]) < 0.05


def test_a_collapsed_set_is_precise_but_covers_little(real: Array) -> None:
    one_mode = MODES[0] + np.random.default_rng(1).normal(0, 0.1, (400, DIMENSIONS))
    figures, fresh = _overall(real, one_mode), _overall(real, _faces(400, seed=3))
    assert figures["precision"] > 0.95
    assert figures["recall"] < 0.05
    assert figures["coverage"] < 0.2 < 0.8 < fresh["coverage"]
    assert figures["density"] > fresh["density"]
    assert figures["diversity"] < 0.3 * fresh["diversity"]
    assert figures["fid"] > 10 * fresh["fid"]
    assert figures["kid"] > 10 * abs(fresh["kid"])
    assert figures["inception_score"] < 0.6 * fresh["inception_score"]


def test_noise_is_not_precise(real: Array) -> None:
    noise = np.random.default_rng(2).normal(0, 2, (400, DIMENSIONS))
    figures, fresh = _overall(real, noise), _overall(real, _faces(400, seed=3))
    assert figures["precision"] < 0.05
    assert figures["density"] < 0.05
    assert figures["coverage"] < 0.1
    assert figures["diversity"] > 1.5 * fresh["diversity"]
    assert figures["fid"] > 10 * fresh["fid"]


def test_a_copied_set_is_as_near_as_can_be_and_said_to_be_itself(real: Array) -> None:
    found = measure(_set(real), _set(real), "f")
    figures = _values(found.overall)
    assert figures["fid"] == pytest.approx(0, abs=1e-3)
    assert figures["kid"] < 1e-3
    assert (figures["precision"], figures["recall"], figures["coverage"]) == (1, 1, 1)
    assert any("compared with itself" in note for note in found.notes)
    part = measure(_set(real), _set(np.concatenate([real[:100], _faces(300, seed=3)])), "f")
    assert any(note.startswith("100 of 400 synthetic images are pixel-identical") for note in part.notes)


def test_distances_grow_with_the_shift_between_the_sets(real: Array) -> None:
    fid, kid = zip(
        *((f["fid"], f["kid"]) for f in (_overall(real, _faces(400, 3) + s) for s in (0, 0.2, 0.4, 0.8))), strict=True
    )
    assert list(fid) == sorted(fid)
    assert list(kid) == sorted(kid)


def test_a_class_is_measured_against_its_own_kind(real: Array) -> None:
    """Synthetic angry faces that look happy are found in their class, though overall the sets agree."""
    labels = np.arange(800) % 2
    apart = real + 3 * labels[:, None]
    fresh = _faces(400, seed=3) + 3 * labels[:400, None]
    right = measure(_set(apart, labels), _set(fresh, labels[:400]), "f")
    wrong = measure(_set(apart, labels), _set(fresh, 1 - labels[:400]), "f")
    assert _values(right.overall)["coverage"] == _values(wrong.overall)["coverage"] > 0.8
    for label in CLASSES:
        assert _values(right.per_class[label])["precision"] > 0.7
        assert _values(wrong.per_class[label])["precision"] < 0.01
    own = [_values(right.per_class[label])["diversity"] for label in CLASSES]
    assert right.overall["diversity"].value == pytest.approx(np.mean(own))


def test_copies_among_the_real_images_do_not_flatter_the_floor() -> None:
    once = _faces(300, seed=0)
    twice = np.repeat(once, 2, axis=0)
    floor = _compare(twice, _faces(300, seed=3))["kid"].floor
    copied = _compare(twice, once)["kid"].value
    assert floor is not None
    assert copied is not None
    assert floor > 0 > copied


# --- torch-fidelity's figures -----------------------------------------------------------------------------------------


class _Pictures(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: ImageSet) -> None:
        self.crops = torch.from_numpy(np.array(images.crops))[:, None].expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, row: int) -> Tensor:
        return self.crops[row]


@pytest.fixture
def torch_fidelity_judge(tiny: Tiny) -> Iterator[str]:
    """The tiny judge as an extractor of torch-fidelity's."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    model = load_judge(str(tiny.judge)).model

    class JudgeOfTorchFidelity(FeatureExtractorBase):  # type: ignore[misc, no-any-unimported]
        def __init__(self, name: str, layers: list[str], **_: Any) -> None:
            super().__init__(name, layers)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features = model.trunk(images[:, :1].float() / 255 - 0.5)
            found = {"features": features, "logits": model.head(features)}
            return tuple(found[layer] for layer in self.features_list)

    register_feature_extractor("judge-of-the-tests", JudgeOfTorchFidelity)
    yield "judge-of-the-tests"
    del FEATURE_EXTRACTORS_REGISTRY["judge-of-the-tests"]


def test_the_figures_are_those_of_torch_fidelity(
    tmp_path: Path, tiny: Tiny, drawn: Path, torch_fidelity_judge: str
) -> None:
    from torch_fidelity import calculate_metrics

    made = write_tree(tmp_path / "made", {"happy": 50, "surprise": 70}, first_person=150)
    extractor = JudgeExtractor(load_judge(str(tiny.judge)))
    real, synthetic = read_real(drawn, extractor), read_synthetic(made, tiny.classes, extractor)
    expected = calculate_metrics(
        input1=_Pictures(synthetic), input2=_Pictures(real), feature_extractor=torch_fidelity_judge,
        fid=True, kid=True, isc=True, prc=True, kid_subset_size=100, cuda=False, cache=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    figures = _values(compare(Vectors.of(real, extractor.name), Vectors.of(synthetic, extractor.name), kid_size=100))
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "inception_score": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for ours, theirs in names.items():
        assert figures[ours] == pytest.approx(expected[theirs], rel=1e-3, abs=1e-6), ours
    assert 0 < figures["precision"] < 1
    assert 0 < figures["recall"] < 1


@pytest.mark.parametrize("counts", [(300, 500), (3000, 2000)])
def test_precision_and_recall_are_torch_fidelitys_in_blocks_of_any_size(counts: tuple[int, int]) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, synthetic = _faces(counts[0], seed=0), 1.3 * _faces(counts[1], seed=3)
    expected = prc_features_to_metric(
        torch.from_numpy(synthetic).float(), torch.from_numpy(real).float(), verbose=False, save_cpu_ram=True
    )
    figures = _compare(real, synthetic, 100)
    for name in ("precision", "recall"):
        assert figures[name].value == pytest.approx(expected[name], abs=1e-6)
        assert 0.1 < expected[name] < 0.9


def test_density_and_coverage_are_the_papers(real: Array) -> None:
    """Naeem et al. (2020), eqs. 5 and 7, written out."""
    synthetic = 1.2 * _faces(400, seed=3)
    among = np.linalg.norm(real[:, None] - real[None], axis=2)
    radius = np.sort(among, axis=1)[:, 5]
    across = np.linalg.norm(real[:, None] - synthetic[None], axis=2)
    figures = _overall(real, synthetic)
    assert figures["density"] == pytest.approx((across < radius[:, None]).sum() / (5 * 400), rel=1e-3)
    assert figures["coverage"] == pytest.approx((across < radius[:, None]).any(axis=1).mean(), abs=2e-3)


# --- small and odd sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 9])
def test_few_images_give_a_figure_or_the_reason_why_not(count: int) -> None:
    found = measure(_set(_faces(count, 0)), _set(_faces(count, 1)), "f")
    figures = found.per_class["angry"]
    assert set(figures) == set(METRICS)
    for name, metric in figures.items():
        assert (metric.value is not None) or f"there are {count}" in metric.note, name
        assert metric.value is None or np.isfinite(metric.value)
        assert metric.floor is None or np.isfinite(metric.floor)
        assert metric.floor is not None or metric.value is None or metric.note.startswith("no floor: needs")
    defined = {name for name, metric in figures.items() if metric.value is not None}
    fewest = {"fid": 2, "kid": 2, "inception_score": 2, "diversity": 2, "precision": 4, "recall": 4}
    assert defined == {name for name in METRICS if count >= fewest.get(name, 6)}


def test_kid_takes_smaller_subsets_of_small_classes_and_says_so() -> None:
    figures = _compare(_faces(50, 0), _faces(300, 1), 60)
    assert figures["kid"].value is not None
    assert figures["kid"].note == "on subsets of 50 images instead of 60"
    assert _compare(_faces(130, 0), _faces(300, 1), 60)["kid"].note == ""


def test_fewer_images_than_dimensions_are_said_to_raise_fid() -> None:
    note = _compare(_faces(10, 0), _faces(300, 1))["fid"].note
    assert note.startswith("high by chance: 10 images for 16 dimensions")


def test_classes_without_synthetic_or_without_real_images(real: Array) -> None:
    labels = (np.arange(800) % 2).astype(np.int64)
    found = measure(_set(real, labels), _set(_faces(100, 1)), "f")
    assert list(found.per_class) == ["angry"]
    assert found.overall["fid"].real_images == 400
    assert any(note.endswith("no synthetic images of them: happy.") for note in found.notes)
    found = measure(_set(real), _set(_faces(800, 1), labels), "f")
    assert found.per_class["happy"]["fid"].value is None
    assert found.per_class["happy"]["precision"].note == "needs 4 real images, there are 0"
    assert any("another mix of classes" in note for note in found.notes)


def test_identical_real_images_alone_give_no_floor() -> None:
    figures = _compare(np.ones((20, DIMENSIONS)), _faces(20, 1))
    assert figures["fid"].value is not None
    assert figures["fid"].floor is None


def test_what_is_known_of_the_real_images_is_cached_by_content(real: Array, cache: Path) -> None:
    first = _compare(real, _faces(300, 1))
    (kept,) = cache.rglob("*.npz")
    written = kept.stat().st_mtime_ns
    assert _compare(real.copy(), _faces(300, 1)) == first
    assert kept.stat().st_mtime_ns == written
    _compare(real[1:], _faces(300, 1))
    assert len(list(cache.rglob("*.npz"))) == 2
    kept.write_bytes(kept.read_bytes()[:1000])
    assert _compare(real, _faces(300, 1)) == first


# --- identity and intensity -------------------------------------------------------------------------------------------


def _persons(count: int, per_person: int, seed: int = 0) -> Array:
    """Unit embeddings: images of a person are alike, those of two persons are not."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(np.random.default_rng(9).normal(size=(count, 64)), per_person, axis=0)
    rows = centres + 0.4 * rng.normal(size=centres.shape)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _with_sources(shuffled: bool) -> Fidelity:
    """Synthetic images of the persons they were made from, or (shuffled) of others."""
    count = 200
    real = _set(_faces(count, 0), embeddings=_persons(count, 1), identity_model="m")
    order = np.roll(np.arange(count), 1 if shuffled else 0)
    sources = tuple(real.names[row] for row in order)
    made = _set(_faces(count, 1), embeddings=_persons(count, 1, seed=1), identity_model="m", sources=sources)
    return measure(real, made, "f")


def test_identity_tells_kept_persons_from_exchanged_ones() -> None:
    kept, exchanged = _with_sources(shuffled=False).identity, _with_sources(shuffled=True).identity
    assert kept is not None
    assert exchanged is not None
    assert kept.pairs == sum(kept.genuine.counts) == 200
    assert kept.same_person > 0.95
    assert kept.per_class == {"angry": kept.same_person}
    assert exchanged.same_person < 0.02
    assert kept.threshold == exchanged.threshold
    assert kept.genuine.median > kept.threshold > kept.impostors.median


def test_several_images_of_a_person_do_not_raise_the_impostors() -> None:
    def threshold(per_person: int) -> float:
        embeddings = _persons(300, per_person)
        real = _set(_faces(len(embeddings), 0), embeddings=embeddings, identity_model="m")
        made = _set(_faces(2, 1), embeddings=embeddings[:2], identity_model="m", sources=real.names[:2])
        found = measure(real, made, "f").identity
        assert found is not None
        return found.threshold

    assert threshold(3) == pytest.approx(threshold(1), abs=0.05)


def test_without_sources_or_embeddings_there_is_no_identity() -> None:
    real = _set(_faces(20, 0), embeddings=_persons(20, 1), identity_model="m")
    assert measure(real, _set(_faces(20, 1)), "f").identity is None
    assert measure(real, _set(_faces(20, 1), embeddings=_persons(20, 1), identity_model="m"), "f").identity is None


def _read(probability: Array) -> Array:
    return np.stack([probability, 1 - probability], axis=1)


def test_intensity_that_shows_correlates() -> None:
    asked = np.linspace(0, 1, 100)
    made = _set(_faces(100, 0), intensities=asked)
    shown = intensity(made, _read(0.2 + 0.6 * asked**2))["angry"]
    assert shown.rank_correlation == pytest.approx(1)
    assert [part.images for part in shown.bins] == [20, 20, 20, 20, 20]
    assert [part.probability for part in shown.bins] == sorted(part.probability for part in shown.bins)
    unrelated = intensity(made, _read(np.random.default_rng(0).uniform(size=100)))["angry"]
    assert unrelated.rank_correlation == pytest.approx(0, abs=0.25)


def test_intensity_that_cannot_be_judged_says_why() -> None:
    assert intensity(_set(_faces(5, 0)), _read(np.full(5, 0.5))) == {}
    few = intensity(_set(_faces(5, 0), intensities=np.linspace(0, 1, 5)), _read(np.linspace(0, 1, 5)))["all"]
    assert (few.rank_correlation, few.note) == (None, "5 images are too few to correlate")
    same = intensity(_set(_faces(50, 0), intensities=np.full(50, 0.7)), _read(np.linspace(0, 1, 50)))["all"]
    assert same.rank_correlation is None
    assert "same intensity" in same.note
    assert [part.images for part in same.bins] == [50]
