"""Faces asked for numbers: action units from OpenFace or typical of a class, valence and arousal, and attention."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ended
from faces import new_faces, write_celeba, write_tree
from PIL import Image

from facesynth import config, train, weights
from facesynth.console import FacesynthError, UsageError
from facesynth.generators.condition import Group, Vocabulary
from facesynth.generators.translation import LAYOUTS, Translator
from facesynth.generators.translator import TranslationEditor, TranslatorRecipe
from facesynth.labelled_faces import LabelledFaces, load_labelled
from facesynth.loop import Loop
from facesynth.recipe import TrainConfig, TranslatorSettings

PAIR = ("happy", "neutral")
NAMES = ("AU06", "AU12", "AU25")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of two classes, with names that both classes have."""
    return write_tree(tmp_path_factory.mktemp("pair") / "faces", dict.fromkeys(PAIR, 60))


def names(src: Path) -> list[str]:
    """Images of a dataset in the order in which they are read."""
    return [f"{label}/im{k}.png" for label in sorted(p.name for p in src.iterdir() if p.is_dir()) for k in range(60)]


def intensities(src: Path) -> dict[str, tuple[float, ...]]:
    """What OpenFace might have seen, on its scale of 0 to 5; happy faces smile."""
    rng = np.random.default_rng(0)
    return {
        name: tuple(np.round(rng.uniform(2, 5, 3) if name.startswith("happy") else rng.uniform(0, 1, 3), 2))
        for name in names(src)
    }


def write_table(path: Path, *faces: Mapping[str, object]) -> None:
    """A CSV as OpenFace writes it: a blank after each comma."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [", ".join(faces[0]), *(", ".join(map(str, face.values())) for face in faces)]
    path.write_text("\n".join(lines) + "\n")


def face(seen: tuple[float, ...], confidence: float = 0.95, **more: object) -> dict[str, object]:
    """One face in such a CSV, with a column of presence that is no intensity."""
    return (
        {"face": 0, "confidence": confidence, "gaze_0_x": 0.1}
        | {f"{name}_r": value for name, value in zip(NAMES, seen, strict=True)}
        | {"AU12_c": 1.0}
        | more
    )


def write_openface(src: Path, out: Path) -> Path:
    """A folder with a CSV for each image of a dataset."""
    for name, seen in intensities(src).items():
        write_table((out / name).with_suffix(".csv"), face(seen))
    return out


def load_small(src: Path, units: str | Path | None = None, colour: bool = False, **settings: Any) -> LabelledFaces:
    """A dataset as ganimation-48 reads it."""
    told = TranslatorSettings(network="ganimation-48", **settings)
    return load_labelled(src, (), told, "cpu", 48, colour, str(units) if units else None)


# --- groups of measures -------------------------------------------------------------------------------------------------

MEASURED = Group("class", PAIR, "measures", ("AU06", "AU12"), ((0.5, 1.0), (0.0, 0.0)))
SEVERAL = Vocabulary(((MEASURED, Group("pose", ("left", "right"))),))


def test_a_class_is_a_point_among_measures_and_zero_is_one_too() -> None:
    assert MEASURED.encode("happy") == [0.5, 1.0, 1.0]
    assert MEASURED.encode("neutral") == [0.0, 0.0, 1.0]  # which is not "nothing is known"
    assert MEASURED.between("neutral", "happy", 0.5) == [0.25, 0.5, 1.0]
    assert MEASURED.between("happy", "neutral", 0.25) == [0.375, 0.75, 1.0]
    assert MEASURED.between("unheard of", "happy", 0.5) == [0.25, 0.5, 1.0]
    assert Vocabulary.of(json.loads(json.dumps(SEVERAL.describe()))) == SEVERAL
    values = torch.tensor([[0.0, 0.0, 1.0, 0, 1]]).repeat(400, 1)
    left = SEVERAL.leave(values, 0.5, torch.Generator().manual_seed(0), 0)
    kept = left[:, 2] == 1
    assert 150 < kept.sum() < 250
    filled = SEVERAL.fill(left, torch.tensor([[0.7, 0.8, 1.0, 1, 0]]).repeat(400, 1), 0)
    assert torch.equal(filled[kept, :3], values[kept, :3])
    assert torch.equal(filled[~kept, :3], torch.tensor([[0.7, 0.8, 1.0]]).repeat(int((~kept).sum()), 1))


def test_measures_are_told_by_their_mean_squared_error() -> None:
    assert SEVERAL.losses == ("class", "measures")
    values = torch.tensor([[0.2, 0.4, 1.0, 0, 1], [0.0, 0.0, 0.0, 1, 0]])  # of the second face no measure is known
    logits = torch.tensor([[0.2, 0.8, 0.0, -9, 9], [5.0, 5.0, 5.0, 9, -9]])
    found = SEVERAL.loss(logits, values, 0)
    assert found["measures"].item() == pytest.approx(0.4**2 / 2)
    assert found["class"].item() < 1e-3


# --- where they come from -----------------------------------------------------------------------------------------------


def test_openface_folders_are_read_by_the_names_of_the_images(pair: Path, tmp_path: Path) -> None:
    seen = intensities(pair)
    faces = load_small(pair, write_openface(pair, tmp_path / "openface"))
    expected = torch.tensor([[*(float(value) / 5 for value in seen[name]), 1.0] for name in names(pair)])
    torch.testing.assert_close(faces.values, expected)
    (group,) = faces.groups
    assert (group.name, group.labels, group.measures) == ("class", PAIR, NAMES)
    means = expected[:, :3].unflatten(0, (2, 60)).mean(1)
    torch.testing.assert_close(torch.tensor(group.prototypes), means, atol=1e-4, rtol=0)


@pytest.mark.parametrize("column", ["file_name", "filename"])
def test_one_table_names_its_images(column: str, pair: Path, tmp_path: Path) -> None:
    rows = [face(seen, **{column: f"C:\\data\\faces\\{name}"}) for name, seen in intensities(pair).items()]
    write_table(tmp_path / "all.csv", *rows)
    assert torch.equal(
        load_small(pair, tmp_path / "all.csv").values,
        load_small(pair, write_openface(pair, tmp_path / "openface")).values,
    )


def test_faces_without_action_units_are_skipped_and_counted(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, out = intensities(pair), write_openface(pair, tmp_path / "openface")
    (out / "happy/im1.csv").unlink()  # and the neutral face of the same name stays
    write_table(out / "happy/im2.csv", face((1, 1, 1), success=0))
    write_table(out / "neutral/im3.csv", face((1, 1, 1), confidence=0.4))
    write_table(out / "neutral/im4.csv", face((1, float("nan"), 1)))
    write_table(out / "neutral/im5.csv", face((5, 5, 5), confidence=0.8), face((1, 2, 3), confidence=0.9, face=1))
    write_table(out / "neutral/im6.csv", face((7, -1, 2.5), success=1))
    faces = load_small(pair, out)
    kept = [name for name in names(pair) if name not in {"happy/im1.png", "happy/im2.png", "neutral/im3.png"}]
    kept.remove("neutral/im4.png")
    assert len(faces.crops) == len(faces.labels) == len(faces.values) == 116
    first = np.asarray(Image.open(pair / kept[1]))
    assert np.abs(faces.crops[1].numpy().astype(int) - first).max() <= 1
    values = dict(zip(kept, faces.values.tolist(), strict=True))
    assert values["neutral/im1.png"] == pytest.approx([*(value / 5 for value in seen["neutral/im1.png"]), 1])
    assert values["neutral/im5.png"] == pytest.approx([0.2, 0.4, 0.6, 1])  # the surer of two faces
    assert values["neutral/im6.png"] == pytest.approx([1, 0, 0.5, 1])
    assert "4 of 120 images" in " ".join(capsys.readouterr().err.split())


def test_tables_that_could_be_of_several_images_are_refused(pair: Path, tmp_path: Path) -> None:
    write_table(tmp_path / "flat/im0.csv", face((1, 1, 1)))
    with pytest.raises(UsageError, match=r"im0 could be happy/im0.png and neutral/im0.png; lay the tables"):
        load_small(pair, tmp_path / "flat")
    for split in ("a", "b"):
        write_table(tmp_path / "twice" / split / "happy/im0.csv", face((1, 1, 1)))
    with pytest.raises(UsageError, match=r"both a/happy/im0 and b/happy/im0 could be happy/im0.png"):
        load_small(pair, tmp_path / "twice")
    for split in ("train", "test"):
        write_openface(pair, tmp_path / "splits" / split)
    (tmp_path / "split").mkdir()
    (tmp_path / "split/train").symlink_to(pair)
    assert len(load_small(tmp_path / "split", tmp_path / "splits").values) == 120  # the training split's own are known


def test_tables_that_say_too_little_are_refused(pair: Path, tmp_path: Path) -> None:
    plain = {"face": 0, "confidence": 0.9}
    write_table(tmp_path / "none/happy/im0.csv", plain)
    with pytest.raises(UsageError, match=r"has no intensities \(AU01_r, ...\): run OpenFace with -aus"):
        load_small(pair, tmp_path / "none")
    write_table(tmp_path / "two/happy/im0.csv", face((1, 1, 1)))
    write_table(tmp_path / "two/happy/im1.csv", plain | {"AU12_r": 1})
    with pytest.raises(UsageError, match=r"im1\.csv has other action units than the tables before it"):
        load_small(pair, tmp_path / "two")
    write_table(tmp_path / "all.csv", face((1, 1, 1)))
    with pytest.raises(UsageError, match="does not say which row is which image: add a column file_name"):
        load_small(pair, tmp_path / "all.csv")
    write_table(tmp_path / "words/happy/im0.csv", face((1, 1, 1)) | {"AU06_r": "many"})
    with pytest.raises(FacesynthError, match=r"im0.csv, line 2: AU06_r is 'many', no number"):
        load_small(pair, tmp_path / "words")
    write_table(tmp_path / "other/fear/x.csv", face((1, 1, 1)))
    with pytest.raises(UsageError, match=r"none of the 120 images in .* has AU06, AU12, AU25"):
        load_small(pair, tmp_path / "other")
    write_table(tmp_path / "half/happy/im0.csv", face((1, 1, 1)))
    with pytest.raises(UsageError, match="of no image of the class 'neutral' AU06, AU12, AU25 are known"):
        load_small(pair, tmp_path / "half")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no CSV of OpenFace"):
        load_small(pair, tmp_path / "empty")
    with pytest.raises(UsageError, match="there is no such file or folder; give what OpenFace wrote, or 'prototypes'"):
        load_small(pair, tmp_path / "missing")


def test_without_openface_a_class_shows_what_is_typical_of_it(tmp_path: Path) -> None:
    src = write_tree(tmp_path / "faces", {"surprise": 30, "happy": 30, "neutral": 30})
    (src / "surprise").rename(src / "Surprised")
    (src / "happy").rename(src / "joy")
    (group,) = load_small(src, "prototypes").groups
    assert group.measures == ("AU01", "AU02", "AU05", "AU06", "AU12", "AU26")
    assert dict(zip(group.labels, group.prototypes, strict=True)) == {
        "joy": (0, 0, 0, 0.6, 0.6, 0),
        "neutral": (0,) * 6,
        "Surprised": (0.6, 0.6, 0.6, 0, 0, 0.6),
    }
    other = write_tree(tmp_path / "other", {"happy": 30, "neutral": 30})
    (other / "neutral").rename(other / "bored")
    with pytest.raises(
        UsageError, match=r"typical of the class 'bored' .they are of angry, contempt, .*rename it, or give"
    ):
        load_small(other, "prototypes")


def test_a_dataset_without_expressions_learns_them_from_action_units(tmp_path: Path) -> None:
    src = write_tree(tmp_path / "faces/train", {"neutral": 60})
    (src / "neutral").rename(src / "people")
    for k in range(60):
        write_table(tmp_path / f"openface/im{k}.csv", face((k / 12, 1, 1)))
    (group,) = load_small(src.parent, tmp_path / "openface").groups
    assert group.labels == ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    assert group.encode("happy") == [0.6, 0.6, 0.0, 1.0]  # as far as OpenFace measures it: AU25 is of no prototype
    with pytest.raises(UsageError, match=r"has one class only \(people\), so that it is not known which action units"):
        load_small(src.parent, "prototypes")


def test_celeba_has_action_units_beside_its_attributes(tmp_path: Path) -> None:
    src = write_celeba(tmp_path / "celeba")
    for k in range(1, 40):
        write_table(tmp_path / f"openface/{k:06d}.csv", face((1, k / 8, 1)))
    faces = load_small(src, tmp_path / "openface", attributes=("Smiling",))
    assert [group.name for group in faces.groups] == ["class", "Smiling"]
    assert len(faces.crops) == 29  # three quarters of 39: the test images are not read
    assert faces.values[0].tolist() == pytest.approx([0.2, 1 / 40, 0.2, 1, 1])
    assert [group.name for group in load_small(src, tmp_path / "openface", attributes=()).groups] == ["class"]
    for told in ({"attributes": ()}, {"measures": ("valence",)}):
        with pytest.raises(UsageError, match=r"is CelebA, which knows neither expressions nor .*--action-units PATH"):
            load_small(src, **told)


def test_columns_of_numbers_are_measures(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = tmp_path / "faces"
    src.mkdir()
    for label in PAIR:
        (src / label).symlink_to(pair / label)
    rows = [f"{name},{0.8 if name.startswith('happy') else -0.2},0.5" for name in names(pair)]
    rows[3] = "happy/im3.png,,0.5"
    (src / "metadata.csv").write_text("\n".join(["file_name,valence,arousal", *rows]))
    faces = load_small(src, measures=("valence", "arousal"))
    assert "1 of 120 images" in " ".join(capsys.readouterr().err.split())
    assert faces.groups == (Group("class", PAIR, "measures", ("valence", "arousal"), ((0.8, 0.5), (-0.2, 0.5))),)
    assert faces.values[58].tolist() == pytest.approx([0.8, 0.5, 1])
    both = load_small(src, write_openface(pair, tmp_path / "openface"), measures=("valence",))
    assert both.groups[0].measures == (*NAMES, "valence")
    with pytest.raises(UsageError, match=r"no column 'valance' .* Did you mean 'valence'\?"):
        load_small(src, measures=("valance",))
    rows[3] = "happy/im3.png,-2,0.5"
    (src / "metadata.csv").write_text("\n".join(["file_name,valence,arousal", *rows]))
    with pytest.raises(UsageError, match=r"valence of happy/im3.png is '-2'; give a number from -1 to 1, or nothing"):
        load_small(src, measures=("valence",))


@pytest.mark.parametrize("preset", ["cgan-48", "editor-48"])
def test_action_units_are_for_translators(preset: str) -> None:
    with pytest.raises(UsageError, match="action_units goes with recipe translator alone"):
        config.load(TrainConfig, {"action_units": "prototypes"}, preset=preset)


# --- attention ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["ganimation-48", "ganimation-128"])
def test_the_mask_says_how_much_of_a_face_stays(network: str) -> None:
    layout = LAYOUTS[network]
    side = layout.size
    translator = Translator(network, 4, width=2)
    images, conditions = torch.rand(2, layout.channels, side, side) * 2 - 1, torch.eye(4)[:2]
    edited, mask = translator(images, conditions, masked=True)
    assert mask.shape == (2, 1, side, side)
    assert torch.equal(edited, translator(images, conditions))
    with torch.no_grad():
        translator.attention[0].weight.zero_()  # the mask is a half
        half = translator(images, conditions)
        translator.colour[0].weight.zero_()  # black and white cancel out: the middle of the range
        middle = translator(images, conditions)
    torch.testing.assert_close(middle, images / 2)
    assert (half - middle).abs().max() <= 0.5
    assert (half - middle).abs().max() > 0


def recipe_of(src: Path, **settings: Any) -> tuple[TranslatorRecipe, Loop]:
    """A recipe with attention and action units on a dataset, and the loop that steps it."""
    told: dict[str, Any] = {"recipe": "translator", "images": 96, "batch_size": 4, "device": "cpu", "precision": "fp32"}
    told |= {"action_units": "prototypes", "translator": {"network": "ganimation-48", "width": 2, "critic_steps": 1}}
    loaded = config.load(TrainConfig, told | settings)
    recipe = TranslatorRecipe(loaded, load_small(src, loaded.action_units))
    return recipe, Loop(recipe, loaded, src)


def test_the_mask_is_held_small_and_smooth(pair: Path) -> None:
    recipe, loop = recipe_of(pair)
    with torch.no_grad():
        recipe.translator.attention[0].weight.zero_()
    logs = loop.step()
    assert logs["attention"].item() == pytest.approx(2 * 0.5 * 48)  # there and back: the norm of a mask of halves
    assert logs["smoothness"].item() == 0
    assert {"measures", "critic_measures"} < set(logs)
    assert not {"class", "critic_class"} & set(logs)

    def mask_after(weight: float) -> float:
        told = {"measures": 0, "reconstruction": 0, "attention": weight, "smoothness": 0}
        _, loop = recipe_of(pair, losses=told, learning_rate=0.01, warmup_images=0)
        for _ in range(20):
            logs = loop.step()
        return logs["attention"].item()

    assert mask_after(1.0) < 0.5 * mask_after(0.0)


def test_what_is_asked_for_is_what_another_face_shows(pair: Path, tmp_path: Path) -> None:
    out = write_openface(pair, tmp_path / "openface")
    recipe, _ = recipe_of(pair, action_units=str(out))
    batch = recipe._draw(200, torch.Generator().manual_seed(0), 0)
    shown = {tuple(row) for row in recipe.faces.values[recipe.faces.training].tolist()}
    assert {tuple(row) for row in batch.condition.tolist()} <= shown
    assert {tuple(row) for row in batch.back.tolist()} <= shown
    assert (batch.condition[:, 1] > 0.4).float().mean().item() == pytest.approx(0.5, abs=0.12)  # half are of the smiles
    assert np.corrcoef(batch.condition[:, 1], batch.back[:, 1])[0, 1] == pytest.approx(0, abs=0.25)


# --- at work ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for action units, hardly trained."""
    told = {"network": "ganimation-48", "width": 4, "critic_steps": 1}
    common: dict[str, Any] = {"device": "cpu", "precision": "fp32", "images": 24, "batch_size": 6}
    out = tmp_path_factory.mktemp("short") / "out"
    return train(pair, "stargan-48", out, action_units="prototypes", translator=told, **common).weights


def test_intensity_is_the_way_from_the_sources_action_units_to_the_targets(short: Path) -> None:
    loaded = weights.load(str(short))
    editor, crops = TranslationEditor(loaded), new_faces("neutral", each=4)
    assert editor.classes == list(PAIR)
    faces = torch.from_numpy(crops)[:, None] * 2 - 1
    wanted = [[0.6 * share, 0.6 * share, 1.0] for share in (0, 0.25, 0.5, 1)]
    with torch.no_grad():
        by_hand = (loaded.module(faces, torch.tensor(wanted)) - faces)[:, 0].numpy() / 2
    draws = [np.random.default_rng(0)] * 4
    shares = np.array([0, 0.25, 0.5, 1], np.float32)
    forward = editor.propose(crops, [1] * 4, [0] * 4, draws, shares)
    np.testing.assert_allclose(forward.difference, by_hand, atol=1e-5)
    back = editor.propose(crops, [0] * 4, [1] * 4, draws, 1 - shares)
    np.testing.assert_allclose(back.difference, by_hand, atol=1e-5)


def test_the_card_and_the_log_say_how_it_went(short: Path) -> None:
    loaded = weights.load(str(short))
    assert list(loaded.info["mean_change"]) == list(PAIR)
    (group,) = Vocabulary.of(loaded.info["vocabulary"]).datasets[0]
    assert group.measures == ("AU06", "AU12")
    last = json.loads((short.parent / "log.jsonl").read_text().splitlines()[-1])
    assert {"diversity/happy", "diversity/neutral"} < set(last)
    assert "| happy |" in (short.parent / "README.md").read_text()


def test_a_translator_that_puts_one_face_on_all_is_seen_to_have_collapsed(pair: Path) -> None:
    recipe, _ = recipe_of(pair)
    with torch.no_grad():
        for head in (recipe.translator.attention[0], recipe.translator.colour[0]):
            head.weight.zero_()
    halves = recipe.check(recipe.translator)
    assert set(halves) == {"diversity/happy", "diversity/neutral"}
    assert all(0.3 < value < 0.8 for value in halves.values())  # half of each face stays

    def stamp(images: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        return images[:1].expand_as(images)

    assert all(value < 0.01 for value in recipe.check(stamp).values())


def test_the_command_trains_from_openface(pair: Path, tmp_path: Path, facesynth: Callable[..., Ended]) -> None:
    openface = write_openface(pair, tmp_path / "openface")
    (tmp_path / "my.yaml").write_text(
        "recipe: translator\nimages: 12\ntranslator: {network: ganimation-48, width: 2, critic_steps: 1}\n"
    )
    flags = ("--preset", tmp_path / "my.yaml", "--out", tmp_path / "out", "--batch-size", 6, "--device", "cpu")
    ended = facesynth("train", pair, *flags, "--action-units", openface, "--json")
    assert ended.code == 0, ended.err
    (group,) = Vocabulary.of(weights.load(json.loads(ended.out)["weights"]).info["vocabulary"]).datasets[0]
    assert group.measures == NAMES
