"""The gates: each one's reasons, what they leave alone, and the calibration that they stand on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import faces
import numpy as np
import pytest

from facesynth.calibration import calibrate, impostor_cosines, one_of_each, stranger_cosine
from facesynth.console import FacesynthError, UsageError
from facesynth.likeness import describe, imitate_copies
from facesynth.screening import Candidates, Reference, Source, Verdict, drop_mutual_copies, screen

Array = np.ndarray[Any, Any]

PERSONS = 60
UNKNOWN = 1000  # a person who is not in the dataset


class SmileJudge:
    """Sees a smile with a given certainty in every face."""

    def __init__(self, happy: float = 0.9) -> None:
        self.classes = ["happy", "sad"]
        self.thresholds = {"happy": 0.6, "sad": 0.3}
        self.happy = happy

    def predict(self, gray: Array) -> Array:
        return np.tile([self.happy, 1 - self.happy], (len(gray), 1))


class HairEmbedder:
    """Knows persons by the upper third of the picture, which no expression touches; counts what it is shown."""

    name = "hair"
    can_locate = False

    def __init__(self) -> None:
        self.seen = 0

    def locate(self, pixels: Array) -> Array | None:
        return None

    def embed(self, photos: list[Array], landmarks: list[Array | None]) -> Array:
        self.seen += len(photos)
        tops = np.stack([cv2.resize(photo[:, :, 0], (12, 12))[:4].ravel() for photo in photos])
        tops = tops - tops.mean(axis=1, keepdims=True)
        return tops / np.maximum(np.linalg.norm(tops, axis=1, keepdims=True), 1e-9)


class BlinkingEmbedder(HairEmbedder):
    """Finds landmarks in most photos, as a real one does; aligned faces look to it as whole ones do."""

    can_locate = True

    def locate(self, pixels: Array) -> Array | None:
        return None if pixels[0, 0, 0] > 0.75 else np.zeros((5, 2), np.float32)


def face(expression: str, person: int) -> Array:
    return faces.draw(expression, person).astype(np.float32) / 255


def real_faces(persons: range) -> Iterator[tuple[str, Array, Array]]:
    for person in persons:
        expression = ("neutral", "sad", "happy")[person % 3]
        crop = face(expression, person)
        yield f"{expression}/im{person}.png", crop, crop[:, :, None]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("run") / "reference"
    return calibrate(real_faces(range(PERSONS)), PERSONS, folder, HairEmbedder())


def candidates(results: list[Array], sources: list[Array], target: str = "happy") -> Candidates:
    return Candidates(
        results=[result[:, :, None] for result in results],
        crops=np.stack(results),
        targets=[target] * len(results),
        sources=[Source(f"source{k}", source[:, :, None], None, source) for k, source in enumerate(sources)],
    )


def verdict_on(
    reference: Reference, result: Array, source: Array, target: str = "happy", happy: float = 0.9
) -> Verdict:
    batch = candidates([result.astype(np.float32)], [source], target)
    return screen(batch, reference, SmileJudge(happy), HairEmbedder())[0]


def test_a_new_expression_of_a_known_person_passes_with_a_score_per_gate(reference: Reference) -> None:
    sources = [face("neutral", 3 * k) for k in range(20)]
    results = [face("happy", 3 * k) for k in range(20)]
    verdicts = screen(candidates(results, sources), reference, SmileJudge(), HairEmbedder())
    assert sum(verdict.accepted for verdict in verdicts) >= 18
    scores = next(verdict.scores for verdict in verdicts if verdict.accepted)
    assert 0.01 <= scores["quality"] <= 1
    assert scores["expression"] == 0.9
    assert scores["novelty"] >= round(reference.thresholds["novelty"], 4)
    assert scores["identity"] > 0.9


ROWS, COLUMNS = np.mgrid[:48, :48]
SPOILED: dict[str, Callable[[Array], Array]] = {
    "blurred": lambda image: cv2.GaussianBlur(image, (0, 0), 3),
    "noisy": lambda image: 0.2 + 0.6 * image + np.random.default_rng(0).uniform(-0.2, 0.2, image.shape),
    "checkerboard": lambda image: np.clip(image + 0.03 * (-1.0) ** (ROWS + COLUMNS), 0, 1),
    "striped": lambda image: np.clip(image + 0.06 * (-1.0) ** COLUMNS, 0, 1),
    "flat": lambda image: 0.5 + 0.02 * (image - 0.5),
    "clipped": lambda image: np.where(image > np.median(image), 1.0, image),
    "not finite": lambda image: np.where(ROWS == 20, np.nan, image),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_quality_names_what_the_generator_broke(reference: Reference, fault: str) -> None:
    verdict = verdict_on(reference, SPOILED[fault](face("happy", 3)), face("neutral", 3))
    assert verdict.reason in {f"quality: {fault}", *(["quality: checkerboard"] if fault == "noisy" else [])}
    assert verdict.scores["quality"] < 0.01
    assert verdict.scores["expression"] is verdict.scores["identity"] is None


def test_quality_does_not_blame_a_result_for_its_source(reference: Reference) -> None:
    blur = SPOILED["blurred"]
    verdict = verdict_on(reference, blur(face("happy", 3)), blur(face("neutral", 3)))
    assert verdict.reason is None or not verdict.reason.startswith("quality")


@pytest.mark.parametrize(
    ("target", "happy", "reason"),
    [("happy", 0.55, "expression: too weak a happy"), ("happy", 0.1, "expression: reads as sad"), ("sad", 0.65, None)],
)
def test_expression_is_held_to_the_threshold_of_its_class(
    reference: Reference, target: str, happy: float, reason: str | None
) -> None:
    assert verdict_on(reference, face("happy", 3), face("neutral", 3), target, happy).reason == reason


def test_a_target_that_the_judge_does_not_know_is_a_usage_error(reference: Reference) -> None:
    with pytest.raises(UsageError, match=r"knows no expression 'hapy'.*'happy'"):
        verdict_on(reference, face("happy", 3), face("neutral", 3), target="hapy")


@pytest.mark.parametrize("mirror", [False, True])
def test_a_source_that_was_only_encoded_again_is_no_new_image(reference: Reference, mirror: bool) -> None:
    source = face("neutral", UNKNOWN)
    copy = np.clip(source * 1.05 + 0.02, 0, 1)
    verdict = verdict_on(reference, copy[:, ::-1] if mirror else copy, source)
    assert verdict.reason == "novelty: source unedited"
    assert verdict.scores["novelty"] < reference.thresholds["unedited"]


@pytest.mark.parametrize("mirror", [False, True])
def test_a_copy_of_another_real_image_is_named(reference: Reference, mirror: bool) -> None:
    name, real, _ = list(real_faces(range(PERSONS)))[17]
    copy = np.clip(real * 1.05 + 0.02, 0, 1)
    verdict = verdict_on(reference, copy[:, ::-1] if mirror else copy, face("neutral", UNKNOWN))
    assert verdict.reason == f"novelty: copy of {name}"


def test_the_source_and_its_copies_in_the_dataset_do_not_count_against_an_edit(tmp_path: Path) -> None:
    doubled = [*real_faces(range(PERSONS)), *real_faces(range(PERSONS))]
    reference = calibrate(doubled, len(doubled), tmp_path / "reference")
    source = face("neutral", 3)
    subtle = source.copy()
    subtle[33:39, 18:30] = face("surprise", 3)[33:39, 18:30]
    nearest, _ = reference.nearest(describe(subtle[None]), describe(source[None]))
    itself, _ = reference.nearest(describe(source[None]), describe(face("neutral", UNKNOWN)[None]))
    assert itself[0] > 0.999
    assert nearest[0] < 1 - reference.thresholds["novelty"]


def test_another_person_is_rejected_and_each_source_is_embedded_once(reference: Reference) -> None:
    sources = [face("neutral", 3)] * 3
    results = [face("happy", 3), face("surprise", 3), face("happy", UNKNOWN)]
    batch = candidates(results, sources)
    batch = replace(batch, sources=[replace(source, name="a") for source in batch.sources])
    embedder = HairEmbedder()
    verdicts = screen(batch, reference, SmileJudge(), embedder)
    assert [verdict.reason for verdict in verdicts] == [None, None, "identity: another person"]
    assert embedder.seen == 1 + 3


def test_a_drawn_face_has_no_source_to_excuse_its_faults_and_must_be_nobodys(tmp_path: Path) -> None:
    reference = calibrate(real_faces(range(PERSONS)), PERSONS, tmp_path / "reference", HairEmbedder(), everyone=True)
    reference.thresholds.update(stranger=0.99, novelty=0.001)
    results = [SPOILED["blurred"](face("happy", 3)), face("neutral", 3), face("happy", 3), face("happy", UNKNOWN)]
    verdicts = screen(candidates(results, sources=[]), reference, SmileJudge(), HairEmbedder())
    person = list(real_faces(range(4)))[3][0]
    reasons = ["quality: blurred", f"novelty: copy of {person}", f"identity: looks like {person}", None]
    assert [verdict.reason for verdict in verdicts] == reasons
    likeness = [verdict.scores["identity"] for verdict in verdicts]
    assert likeness[:2] == [None, None]
    assert likeness[2] > 0.99 > likeness[3] > 0


def test_drawn_faces_need_a_calibration_that_knows_everyone(reference: Reference) -> None:
    with pytest.raises(FacesynthError, match="does not know the real persons"):
        screen(candidates([face("happy", UNKNOWN)], sources=[]), reference, SmileJudge(), HairEmbedder())


def test_without_an_embedder_identity_is_not_measured(reference: Reference) -> None:
    verdicts = screen(candidates([face("happy", UNKNOWN)], [face("neutral", 3)]), reference, SmileJudge(), None)
    assert verdicts[0].accepted
    assert verdicts[0].scores["identity"] is None


def test_a_calibration_without_embedder_cannot_serve_the_identity_gate(tmp_path: Path) -> None:
    reference = calibrate(real_faces(range(PERSONS)), PERSONS, tmp_path / "reference")
    with pytest.raises(FacesynthError, match="--identity off"):
        verdict_on(reference, face("happy", 3), face("neutral", 3))


def test_calibration_is_repeatable_replaces_the_old_one_and_survives_loading(tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    calibrate(real_faces(range(9)), 9, folder)
    first = calibrate(real_faces(range(PERSONS)), PERSONS, folder, BlinkingEmbedder(), seed=5)
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    calibrate(real_faces(range(PERSONS)), PERSONS, folder, BlinkingEmbedder(), seed=5)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]
    loaded = Reference.load(folder)
    assert loaded.thresholds == first.thresholds
    assert set(loaded.thresholds) == {"quality", "novelty", "unedited", "whole", "aligned", "stranger"}
    assert loaded.facts["images"] == PERSONS
    assert 0 < loaded.facts["located"] < PERSONS
    assert isinstance(loaded.descriptors, np.memmap)


def test_images_that_cannot_be_read_leave_no_holes(tmp_path: Path) -> None:
    reference = calibrate(real_faces(range(40)), PERSONS, tmp_path / "reference")
    assert len(reference.names) == len(reference.descriptors) == 40


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no real image could be read"),
        ([("a", np.full((48, 48), 0.5), np.full((48, 48, 1), 0.5))], "one flat gray"),
        (list(real_faces(range(1))), "two real images or more"),
        (list(real_faces(range(1))) * 3, "copies of one"),
    ],
)
def test_too_little_to_calibrate_on_is_said(tmp_path: Path, images: list[Any], message: str) -> None:
    with pytest.raises(FacesynthError, match=message):
        calibrate(images, len(images), tmp_path / "reference", HairEmbedder())
    assert not list(tmp_path.iterdir())


def test_a_calibration_that_cannot_be_written_or_read_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FacesynthError, match=r"file/reference.*could not be written"):
        calibrate(real_faces(range(3)), 3, tmp_path / "file" / "reference")
    calibrate(real_faces(range(3)), 3, tmp_path / "reference")
    (tmp_path / "reference" / "descriptors.npy").write_bytes(b"torn")
    with pytest.raises(FacesynthError, match=r"reference: not a readable calibration"):
        Reference.load(tmp_path / "reference")


def test_several_images_of_a_person_do_not_raise_the_identity_threshold() -> None:
    rng = np.random.default_rng(0)
    persons = np.repeat(rng.normal(size=(60, 64)), [*[1] * 59, 80], axis=0)
    rows = persons + 0.5 * rng.normal(size=persons.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    descriptors = describe(rng.random((len(rows), 48, 48)))

    def threshold(part: np.ndarray) -> float:
        return float(np.quantile(impostor_cosines(part, descriptors[: len(part)], novelty=0.05), 0.999))

    honest = threshold(rows[:60])
    assert threshold(rows) > honest + 0.2
    assert abs(threshold(rows[one_of_each(rows)]) - honest) < 0.1


def test_as_many_strangers_as_foreseen_look_like_a_real_person() -> None:
    rng = np.random.default_rng(0)
    faces = rng.normal(size=(3000, 64)).astype(np.float32)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    real, strangers, seen = faces[:2000], faces[2000:], faces[:300]
    limit = stranger_cosine((seen @ seen.T)[np.triu_indices(300, 1)], len(real))
    matches = (strangers @ real.T >= limit).sum(axis=1)
    assert 0.2 < matches.mean() < 1.0  # half a real face for each stranger


def test_of_mutual_copies_the_first_is_kept(reference: Reference) -> None:
    threshold = reference.thresholds["novelty"]
    different = np.stack([face("happy", person) for person in range(8)])
    copies = imitate_copies(different[:3], np.random.default_rng(0))
    crops = np.concatenate([different, different[:3], different[:3, :, ::-1], copies])
    descriptors = describe(crops).astype(np.float16)
    keep = drop_mutual_copies(descriptors, threshold)
    assert keep.tolist() == [True] * 8 + [False] * 6 + keep[14:].tolist()
    assert not keep[14:].all()
    assert drop_mutual_copies(descriptors[:14], threshold, known=11).tolist() == [True] * 11 + [False] * 3


@pytest.mark.real
def test_copies_in_fer2013_are_found_and_different_images_are_not(
    fer2013: Path, test_data: Path, tmp_path: Path
) -> None:
    with (test_data / "data" / "fer2013_index.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train" and row["class"] == "disgust"]
    crops = [cv2.imread(str(fer2013 / "train" / "disgust" / row["file"]), cv2.IMREAD_GRAYSCALE) / 255.0 for row in rows]
    images = [(row["file"], crop, crop[:, :, None]) for row, crop in zip(rows, crops, strict=True)]
    reference = calibrate(images, len(images), tmp_path / "reference")
    keep = drop_mutual_copies(reference.descriptors, reference.thresholds["novelty"])
    distinct = len({row["pixel_sha1"] for row in rows})
    # Twelve more are the same photo, cut or lit a little differently.
    assert distinct - 12 <= keep.sum() <= distinct
