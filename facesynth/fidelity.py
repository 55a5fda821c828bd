"""Are the synthetic images good? Their features against those of real images, overall and per class, beside a floor.

The floor of a figure is the same figure of a part of the real training images against the rest of them: what images that
are as good as real ones get. As the figures depend on numbers, both parts are to each other as the synthetic images are to
the real ones, or halves where there are more synthetic ones. FID (Heusel et al. 2017), KID (Bińkowski et al. 2018) and the
Inception Score (Salimans et al. 2016) are torch-fidelity's; see `manifold` for precision, recall, density and coverage;
diversity is the mean distance between two images of a class.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from facesynth import console
from facesynth.calibration import FALSE_ACCEPT_RATE, SAMPLE, one_of_each
from facesynth.evaluation import Fidelity, Histogram, Identity, Intensity, IntensityBin, Metric
from facesynth.imagecache import cache_folder
from facesynth.imageset import ImageSet, SyntheticSet
from facesynth.manifold import COVERAGE_NEIGHBOUR, PRECISION_NEIGHBOUR, Manifold, cover, manifold
from facesynth.output import write_atomic

Array = NDArray[Any]

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
"""Both as in the paper, and torch-fidelity's defaults."""

KID_CLASS_SUBSET_SIZE = 200
"""A single class is measured on smaller subsets: KID is unbiased at any size, and its cost grows with the square."""

SCORE_SPLITS = 10
SCORE_SPLIT_SIZE = 10
"""The Inception Score is the mean over ten splits; one of fewer images than this says nothing."""

MIX_TOLERANCE = 0.1
"""Total variation between the class mixes of both sets that is worth a note."""

COSINE_EDGES = np.linspace(-1, 1, 41)
INTENSITY_BINS = 5
FEWEST_TO_CORRELATE = 10

_FORMAT = 1
"""Of cached reference statistics: to be raised when they get another meaning."""


@dataclass(frozen=True)
class Figure:
    """A value, or None and why; or a value and what is unusual about it."""

    value: float | None
    note: str = ""


@dataclass(frozen=True)
class Vectors:
    """What metrics read of N images: features (N, D), logits (N, K), labels (N,) and pixel digests (N,)."""

    features: Array
    logits: Array
    labels: Array
    digests: Array

    @classmethod
    def of(cls, images: ImageSet, features: str) -> Vectors:
        """Those of a set, by the features of this name."""
        return cls(images.features[features], images.logits[features], images.labels, images.digests)

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: Array) -> Vectors:
        """The images at `rows`, or where a mask is true."""
        return Vectors(self.features[rows], self.logits[rows], self.labels[rows], self.digests[rows])


@dataclass(frozen=True)
class Cloud:
    """N images as features (N, D) and logits (N, K) on the CPU, with what comparisons need beside them.

    `statistics` holds "mu" (D,) and "sigma" (D, D) as torch-fidelity makes them; it is empty below two images.
    """

    features: Tensor
    logits: Tensor
    manifold: Manifold
    statistics: dict[str, Array]

    def __len__(self) -> int:
        return len(self.features)


def measure(real: ImageSet, synthetic: SyntheticSet, features: str, *, device: str = "cpu", seed: int = 0) -> Fidelity:
    """Measure synthetic images against the training split of the real ones, by the features of this name.

    Classes without synthetic images are left out. `seed` splits the real images for the floor. What these alone decide is
    cached by their content. GAN-test, GAN-train and intensity are left for the caller to fill in.
    """
    real = real.of("train")
    theirs, ours = Vectors.of(real, features), Vectors.of(synthetic, features)
    places = [place for place, count in enumerate(synthetic.counts().values()) if count]
    per_class: dict[str, dict[str, Metric]] = {}
    with console.progress("measuring", len(places) + 1, unit="sets") as bar:
        for place in places:
            pair = theirs.take(theirs.labels == place), ours.take(ours.labels == place)
            per_class[synthetic.classes[place]] = compare(*pair, KID_CLASS_SUBSET_SIZE, device, seed)
            bar.advance()
        overall = compare(theirs.take(np.isin(theirs.labels, places)), ours, KID_SUBSET_SIZE, device, seed)
        bar.advance()
    overall["diversity"] = _mean_of_classes(overall["diversity"], [own["diversity"] for own in per_class.values()])
    return Fidelity(
        features=features,
        overall=overall,
        per_class=per_class,
        identity=identity(real, synthetic, seed),
        notes=_notes(real, synthetic),
    )


def compare(
    real: Vectors, synthetic: Vectors, kid_size: int = KID_SUBSET_SIZE, device: str = "cpu", seed: int = 0
) -> dict[str, Metric]:
    """Each of `evaluation.METRICS` of synthetic images against real ones, with its floor; KID on subsets of `kid_size`."""
    reference, floors = _reference(real, len(synthetic), kid_size, device, seed)
    metrics = {}
    for name, figure in figures(reference, cloud_of(synthetic, device), kid_size).items():
        floor = floors[name]
        note = figure.note if floor.value is not None or figure.value is None else f"no floor: {floor.note}"
        metrics[name] = Metric(
            value=figure.value, floor=floor.value, images=len(synthetic), real_images=len(real), note=note
        )
    return metrics


def cloud_of(vectors: Vectors, device: str = "cpu") -> Cloud:
    """Measure the vectors among themselves."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    features = _tensor(vectors.features)
    statistics = fid_features_to_statistics(features) if len(features) > 1 else {}
    return Cloud(features, _tensor(vectors.logits), manifold(features.to(device)), statistics)


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32))


def figures(real: Cloud, synthetic: Cloud, kid_size: int) -> dict[str, Figure]:
    """Each of `evaluation.METRICS` of a cloud against another."""
    found = cover(real.manifold, synthetic.manifold)
    return {
        "fid": _fid(real, synthetic),
        "kid": _kid(real, synthetic, kid_size),
        "inception_score": _inception_score(synthetic.logits),
        "precision": _of_balls(found.precision, PRECISION_NEIGHBOUR, "real", len(real)),
        "recall": _of_balls(found.recall, PRECISION_NEIGHBOUR, "synthetic", len(synthetic)),
        "density": _of_balls(found.density, COVERAGE_NEIGHBOUR, "real", len(real)),
        "coverage": _of_balls(found.coverage, COVERAGE_NEIGHBOUR, "real", len(real)),
        "diversity": Figure(synthetic.manifold.spread)
        if len(synthetic) > 1
        else Figure(None, f"needs two images, there are {len(synthetic)}"),
    }


def _of_balls(value: float | None, neighbour: int, kind: str, count: int) -> Figure:
    return Figure(value, f"needs {neighbour + 1} {kind} images, there are {count}" if value is None else "")


def _fid(real: Cloud, synthetic: Cloud) -> Figure:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    fewest, dimensions = min(len(real), len(synthetic)), real.features.shape[1]
    if fewest < 2:
        return Figure(None, f"needs two images on either side, there are {len(real)} and {len(synthetic)}")
    value = fid_statistics_to_metric(real.statistics, synthetic.statistics, verbose=False)[KEY_METRIC_FID]
    few = (
        f"high by chance: {fewest:,} images for {dimensions:,} dimensions; compare KID" if fewest <= dimensions else ""
    )
    return Figure(float(value), few)


def _kid(real: Cloud, synthetic: Cloud, usual: int) -> Figure:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(usual, len(real), len(synthetic))
    if size < 2:
        return Figure(None, f"needs two images on either side, there are {len(real)} and {len(synthetic)}")
    value = kid_features_to_metric(
        synthetic.features, real.features, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False
    )[KEY_METRIC_KID_MEAN]
    return Figure(float(value), "" if size == usual else f"on subsets of {size} images instead of {usual:,}")


def _inception_score(logits: Tensor) -> Figure:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    if len(logits) < 2:
        return Figure(None, f"needs two images, there are {len(logits)}")
    splits = min(SCORE_SPLITS, max(1, len(logits) // SCORE_SPLIT_SIZE))
    value = isc_features_to_metric(logits, splits)[KEY_METRIC_ISC_MEAN]
    return Figure(float(value), "" if splits == SCORE_SPLITS else f"over {splits} splits instead of {SCORE_SPLITS}")


def _mean_of_classes(overall: Metric, classes: list[Metric]) -> Metric:
    """Diversity within classes: what different classes add to it is no merit."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return overall.model_copy(
        update={
            "value": mean([metric.value for metric in classes]),
            "floor": mean([metric.floor for metric in classes]),
            "note": "mean of the classes",
        }
    )


def _notes(real: ImageSet, synthetic: SyntheticSet) -> list[str]:
    notes = []
    identical = np.isin(synthetic.digests, real.digests)
    if identical.all():
        notes.append("Every synthetic image is pixel-identical to a real training image: a set compared with itself.")
    elif identical.any():
        count = int(identical.sum())
        notes.append(f"{count:,} of {len(synthetic):,} synthetic images are pixel-identical to real training images.")
    have, want = (np.array(list(images.counts().values()), float) for images in (synthetic, real))
    missing = [label for label, count in synthetic.counts().items() if not count]
    if missing:
        notes.append(f"Left out, as there are no synthetic images of them: {', '.join(missing)}.")
    want[have == 0] = 0
    if abs(have / have.sum() - want / max(want.sum(), 1)).sum() / 2 > MIX_TOLERANCE:
        notes.append(
            "The synthetic images have another mix of classes than the real ones, which the overall figures count as "
            "distance; the figures per class do not."
        )
    return notes


# --- the reference ----------------------------------------------------------------------------------------------------


def _reference(real: Vectors, synthetic: int, kid_size: int, device: str, seed: int) -> tuple[Cloud, dict[str, Figure]]:
    """The real images as a cloud, and the floors for so many synthetic ones; from the cache where it has them."""
    share = min(0.5, synthetic / (synthetic + len(real)))
    path = cache_folder() / "references" / f"{_content(real, f'{_FORMAT} {share} {kid_size} {seed}')}.npz"
    found = _load(path, real, device)
    if found is None:
        cloud = cloud_of(real, device)
        part, rest = (cloud_of(real.take(rows), device) for rows in _split(real, share, seed))
        found = cloud, figures(rest, part, kid_size)
        _save(path, *found)
    return found


def _split(real: Vectors, share: float, seed: int) -> tuple[Array, Array]:
    """Masks of a random share of each class, and of the rest; pixel-identical images stay together, else they'd flatter."""
    part = np.zeros(len(real), bool)
    for label in np.unique(real.labels):
        rows = np.flatnonzero(real.labels == label)
        digests, place = np.unique(real.digests[rows], return_inverse=True)
        rank = np.random.default_rng([seed, int(label)]).permutation(len(digests))
        part[rows] = rank[place] < np.ceil(share * len(digests))
    return part, ~part


def _content(real: Vectors, settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for values in (real.features, real.logits, real.labels, real.digests):
        digest.update(f"{values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:32]


def _save(path: Path, cloud: Cloud, floors: dict[str, Figure]) -> None:
    buffer = io.BytesIO()
    text = json.dumps({name: [floor.value, floor.note] for name, floor in floors.items()})
    balls = cloud.manifold
    arrays: dict[str, Any] = {"radius3": balls.radius3.cpu().numpy(), "radius5": balls.radius5.cpu().numpy()}
    np.savez(buffer, floors=np.array(text), spread=np.array(balls.spread), **(arrays | cloud.statistics))
    write_atomic(path, buffer.getvalue())


def _load(path: Path, real: Vectors, device: str) -> tuple[Cloud, dict[str, Figure]] | None:
    """None where the file is missing or broken."""
    try:
        with np.load(path) as saved:
            floors = {name: Figure(*pair) for name, pair in json.loads(str(saved["floors"])).items()}
            radii = [torch.from_numpy(saved[name]).to(device) for name in ("radius3", "radius5")]
            statistics = {name: saved[name] for name in ("mu", "sigma") if name in saved}
            spread = float(saved["spread"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    vectors = _tensor(real.features)
    balls = Manifold(vectors.to(device), radii[0], radii[1], spread)
    return Cloud(vectors, _tensor(real.logits), balls, statistics), floors


# --- identity and intensity -------------------------------------------------------------------------------------------


def identity(real: ImageSet, synthetic: SyntheticSet, seed: int = 0) -> Identity | None:
    """Cosines of synthetic images with their sources, and of up to 1,000 real training images of different persons.

    As datasets do not name persons, one image of each is taken as far as cosines tell (see `one_of_each`). None where
    embeddings or sources are missing, or all real images look like one person.
    """
    if real.embeddings is None or synthetic.embeddings is None or real.identity_model is None:
        return None
    place = {
        name: row for row, (name, split) in enumerate(zip(real.names, real.splits, strict=True)) if split == "train"
    }
    pairs = [(row, place[source]) for row, source in enumerate(synthetic.sources) if source in place]
    impostors = _impostors(real.of("train"), seed)
    if not pairs or not len(impostors):
        return None
    made, sources = np.array(pairs).T
    genuine = (synthetic.embeddings[made] * real.embeddings[sources]).sum(axis=1)
    threshold = float(np.quantile(impostors, 1 - FALSE_ACCEPT_RATE))
    same = genuine > threshold
    labels = synthetic.labels[made]
    return Identity(
        model=real.identity_model,
        genuine=histogram(genuine, COSINE_EDGES),
        impostors=histogram(impostors, COSINE_EDGES),
        threshold=threshold,
        same_person=float(same.mean()),
        per_class={synthetic.classes[k]: float(same[labels == k].mean()) for k in np.unique(labels)},
        pairs=len(pairs),
    )


def _impostors(real: ImageSet, seed: int) -> Array:
    """Cosines of all pairs of different persons in a sample."""
    assert real.embeddings is not None
    distinct = np.unique(real.digests, return_index=True)[1]
    drawn = np.random.default_rng(seed).permutation(distinct)[:SAMPLE]
    embeddings = real.embeddings[np.sort(drawn)]
    embeddings = embeddings[one_of_each(embeddings)]
    return np.asarray((embeddings @ embeddings.T)[np.triu_indices(len(embeddings), 1)])


def histogram(values: Array, edges: Array) -> Histogram:
    """Count values between edges; values beyond them go to the outermost bins."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    median = float(np.median(values)) if len(values) else 0.0
    return Histogram(edges=np.round(edges, 6).tolist(), counts=counts.tolist(), median=round(median, 6))


def intensity(synthetic: SyntheticSet, probabilities: Array) -> dict[str, Intensity]:
    """Whether more intensity shows, per class and over all ("all"), by a classifier's probabilities (N, classes).

    Empty where no image says what intensity was asked for.
    """
    own = probabilities[np.arange(len(synthetic)), synthetic.labels]
    asked = np.isfinite(synthetic.intensities)
    if not asked.any():
        return {}
    of_class = {label: asked & (synthetic.labels == place) for place, label in enumerate(synthetic.classes)}
    groups = {"all": asked} | {label: rows for label, rows in of_class.items() if rows.any()}
    low, high = synthetic.intensities[asked].min(), synthetic.intensities[asked].max()
    edges = np.linspace(low, high, INTENSITY_BINS + 1 if high > low else 2)
    return {name: _calibration(synthetic.intensities[rows], own[rows], edges) for name, rows in groups.items()}


def _calibration(intensities: Array, probabilities: Array, edges: Array) -> Intensity:
    place = np.clip(np.digitize(intensities, edges) - 1, 0, len(edges) - 2)
    bins = [
        IntensityBin(
            low=round(float(edges[k]), 6),
            high=round(float(edges[k + 1]), 6),
            images=int((place == k).sum()),
            probability=float(probabilities[place == k].mean()),
        )
        for k in np.unique(place)
    ]
    if len(intensities) < FEWEST_TO_CORRELATE:
        few = f"{len(intensities)} images are too few to correlate"
        return Intensity(bins=bins, rank_correlation=None, note=few)
    if np.ptp(intensities) == 0 or np.ptp(probabilities) == 0:
        return Intensity(bins=bins, rank_correlation=None, note="all images have the same intensity or probability")
    return Intensity(bins=bins, rank_correlation=float(spearmanr(intensities, probabilities).statistic))
