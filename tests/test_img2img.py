"""Image-to-image pipelines of diffusers as editors: a tiny one of random weights, its autoencoder fitted to drawn faces."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import Ended, Tiny
from faces import draw, write_tree
from PIL import Image

from facesynth import augment, config
from facesynth.config import AugmentConfig, Img2ImgSettings
from facesynth.console import UsageError
from facesynth.generators.img2img import Img2ImgEditor, find
from facesynth.weights import WeightsError

SIZE = 48
PROMPTS = {"happy": "a happy face", "neutral": "a calm face", "surprised": "a surprised face"}
SETTINGS: dict[str, Any] = {"prompts": PROMPTS, "strength": 0.5, "guidance": 4.0, "steps": 8, "size": SIZE}


def _tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer that knows letters alone."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def _autoencoder() -> Any:
    """One that gives drawn faces back, a little blurred."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    people = [draw(label, person, colour=True) for person in range(20) for label in Tiny.classes]
    faces = torch.from_numpy(np.stack(people)).permute(0, 3, 1, 2) / 127.5 - 1
    optimizer = torch.optim.Adam(vae.parameters(), 0.01)
    for step in range(150):
        pick = torch.randint(len(faces), (12,), generator=torch.Generator().manual_seed(step))
        latents = vae.encode(faces[pick]).latent_dist
        loss = (vae.decode(latents.mode()).sample - faces[pick]).abs().mean() + 1e-3 * latents.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, saved as users save theirs."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("pipelines")
    tokenizer = _tokenizer(home / "tokenizer")
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    ends = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": len(tokenizer) - 1}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **shape, **ends))
    unet = UNet2DConditionModel(
        sample_size=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    # Little noise, since this network takes none away.
    scheduler = DDIMScheduler(beta_start=1e-5, beta_end=1e-4, clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        _autoencoder(), text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(home / "tiny-pipeline")
    return home / "tiny-pipeline"


def opened(folder: Path, **settings: Any) -> Img2ImgEditor:
    return Img2ImgEditor(find(str(folder), Img2ImgSettings(**SETTINGS | settings)))


def edited(editor: Img2ImgEditor, crops: np.ndarray, target: int = 0, intensity: float = 1.0) -> np.ndarray:
    """The differences (N, S, S, 3)."""
    count = len(crops)
    draws = [np.random.default_rng([3, k]) for k in range(count)]
    edits = editor.propose(crops, [1] * count, [target] * count, draws, np.full(count, intensity, np.float32))
    assert edits.flow is None
    return edits.difference


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    """Three coloured faces and a gray one."""
    faces = np.stack([draw("neutral", person, SIZE, colour=True) for person in range(4)]).astype(np.float32) / 255
    faces[3] = faces[3].mean(axis=2, keepdims=True)
    return faces


def test_faces_are_edited_at_the_pipelines_size_and_gray_ones_stay_gray(folder: Path, crops: np.ndarray) -> None:
    editor = opened(folder)
    assert (editor.name, editor.classes, editor.size, editor.channels) == (
        "tiny-pipeline",
        ["happy", "neutral", "surprise"],
        SIZE,
        3,
    )
    change = edited(editor, crops)
    assert change.shape == (4, SIZE, SIZE, 3)
    assert change.dtype == np.float32
    made = crops + change
    assert -1e-6 <= made.min() < made.max() <= 1 + 1e-6
    assert np.ptp(made, axis=3)[3].max() < 1e-6
    assert np.ptp(change, axis=3)[:3].mean() > 0.005
    assert 0.005 < np.abs(change).mean() < 0.2  # a picture of the same face


def test_prompts_and_intensity_have_their_effect(folder: Path, crops: np.ndarray) -> None:
    editor = opened(folder)
    happy, surprised = edited(editor, crops, 0), edited(editor, crops, 2)
    assert np.abs(happy - surprised).max() > 1e-4
    with_negative = edited(opened(folder, negative_prompt="a drawing"), crops, 0)
    assert np.abs(happy - with_negative).max() > 1e-4
    assert not edited(editor, crops, 0, 0.0).any()
    vivid = opened(folder, strength=1.0)
    assert np.array_equal(edited(vivid, crops, 0, 0.5), happy)  # half as far of twice the way


def test_a_face_does_not_depend_on_its_batch_and_comes_again(folder: Path, crops: np.ndarray) -> None:
    editor = opened(folder)
    target, strength = [0, 1, 2, 0], np.array([1, 0.25, 0, 1], np.float32)

    def proposed(rows: list[int]) -> np.ndarray:
        draws = [np.random.default_rng(k) for k in rows]
        return editor.propose(crops[rows], [1] * len(rows), [target[k] for k in rows], draws, strength[rows]).difference

    together = proposed([0, 1, 2, 3])
    assert np.array_equal(together, proposed([0, 1, 2, 3]))
    assert np.abs(together - np.concatenate([proposed([k]) for k in range(4)])).max() < 1e-5
    other = editor.propose(crops[:1], [1], [0], [np.random.default_rng(9)], strength[:1]).difference
    assert np.abs(other - together[:1]).max() > 1e-3


def test_lora_weights_take_part_and_are_told_apart(folder: Path, crops: np.ndarray, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, weight in unet.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(unet))
    plain, with_lora = opened(folder), opened(folder, lora=str(tmp_path))
    assert with_lora.digest.startswith(f"{plain.digest}+lora-")
    full = edited(with_lora, crops)
    assert np.abs(full - edited(plain, crops)).max() > 1e-3
    file = str(tmp_path / "pytorch_lora_weights.safetensors")
    assert np.array_equal(full, edited(opened(folder, lora=file), crops))
    assert np.abs(edited(opened(folder, lora=file, lora_scale=0.0), crops) - edited(plain, crops)).max() < 1e-5
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"broken")
    with pytest.raises(WeightsError, match=r"cannot be loaded .* with the LoRA weights"):
        opened(folder, lora=file)


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def preset(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"generator": str(folder), "batch_size": 4, "img2img": SETTINGS}))
    return path


def write_faces(folder: Path, mode: str, size: int) -> Path:
    """Drawn faces with one out of focus among them: what comes out of the tiny autoencoder is no sharper."""
    write_tree(folder, {"happy": 3, "neutral": 3, "surprise": 3}, size, mode, first_person=900)
    blurred = folder / "happy/im0.png"
    Image.fromarray(cv2.GaussianBlur(np.asarray(Image.open(blurred)), (0, 0), size / 16)).save(blurred)
    return folder


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "metadata.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["synthetic"] == "true"]


@pytest.mark.parametrize(("mode", "size"), [("L", 48), ("RGB", 64)])
def test_a_dataset_is_augmented_in_its_own_form_and_twice_alike(
    mode: str, size: int, preset: Path, folder: Path, tiny: Tiny, tmp_path: Path
) -> None:
    src = write_faces(tmp_path / "faces", mode, size)
    flags: dict[str, Any] = {"judge": str(tiny.judge), "identity": "off", "max_attempts": 12, "device": "cpu"}
    for out in ("one", "two"):
        result = augment(src, preset=str(preset), expressions="all", out=tmp_path / out, **flags)
    rows = rows_of(tmp_path / "one")
    assert len(rows) == sum(result.synthetic.values()) >= 3
    digest = find(str(folder), Img2ImgSettings(**SETTINGS)).digest
    for row in rows:
        assert row["generator"] == f"tiny-pipeline@{digest}"
        assert 0.8 <= float(row["intensity"]) <= 1
        made = Image.open(tmp_path / "one" / row["file_name"])
        assert (made.mode, made.size) == (mode, (size, size))
        assert (tmp_path / "two" / row["file_name"]).read_bytes() == (tmp_path / "one" / row["file_name"]).read_bytes()


def test_a_run_is_not_gone_on_with_by_another_pipeline(
    preset: Path, folder: Path, tiny: Tiny, tmp_path: Path, facesynth: Callable[..., Ended]
) -> None:
    src = write_faces(tmp_path / "faces", "L", 48)
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    common = (src, "--preset", preset, "--generator", mine, "--identity", "off", "--max-attempts", 1)
    flags = (*common, "--on-existing", "resume")
    assert facesynth("augment", *flags).code in (0, 3)
    assert "finished already" in facesynth("augment", *flags).err
    scheduler = mine / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.0001", "0.0002"))
    ended = facesynth("augment", *flags)
    assert ended.code == 2
    assert "begun with other settings (generator_weights)" in ended.err


def test_what_is_wrong_is_said_before_anything_is_written(
    preset: Path, folder: Path, tmp_path: Path, facesynth: Callable[..., Ended]
) -> None:
    src = write_tree(tmp_path / "faces", {"happy": 2, "sad": 2})
    (src / "sad").rename(src / "bored")
    out = ("--out", tmp_path / "out", "--identity", "off")
    ended = facesynth("augment", src, "--preset", preset, *out)
    assert ended.code == 2
    assert "the class 'bored' has no prompt (there are some for happy, neutral, surprise)" in ended.err
    ended = facesynth("augment", src, "--generator", folder, *out)
    assert ended.code == 1
    assert "needs prompts; add --preset img2img" in ended.err
    ended = facesynth("augment", src, "--preset", preset, "--generator", src, *out)
    assert ended.code == 1
    assert "is no pipeline of diffusers (no model_index.json in it)" in ended.err
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken/unet/diffusion_pytorch_model.safetensors").unlink()
    ended = facesynth("augment", src, "--preset", preset, "--generator", tmp_path / "broken", *out)
    assert ended.code == 1
    assert "cannot be loaded as an image-to-image pipeline (" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_pipeline_of_the_hub_is_named_by_its_commit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--org--tiny"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = Img2ImgSettings(**SETTINGS)
    for spec in ("org/tiny", f"org/tiny@{commit}", "hf://org/tiny"):
        found = find(spec, settings)
        assert (found.name, found.digest, found.folder) == ("org/tiny", commit[:16], cached / "snapshots" / commit)
    with pytest.raises(
        WeightsError, match="org/other: this pipeline is no folder here and did not come from the Hugging"
    ):
        find("org/other", settings)
    with pytest.raises(WeightsError, match="org/tiny: this pipeline at v2 is no folder here"):
        find("org/tiny@v2", settings)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_preset_has_prompts_for_all_usual_expressions() -> None:
    loaded = config.load(AugmentConfig, {"src": "x", "generator": "org/other@main"}, preset="img2img")
    assert loaded.img2img is not None
    assert {"angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"} <= set(loaded.img2img.prompts)
    assert loaded.generator == "org/other@main"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{prompts: {happy: a}, strenght: 1}",
            r"img2img\.strenght in .*my\.yaml\. Did you mean 'strength'\? Known: prompts",
        ),
        ("{prompts: {happy: ''}}", r"img2img\.prompts in .*my\.yaml: "),
        ("{prompts: {}}", r"img2img\.prompts in .*my\.yaml: "),
        ("{prompts: {happy: a}, size: 500}", r"img2img\.size in .*my\.yaml: should be a multiple of 8, not 500"),
        ("{prompts: {happy: a}, strength: 0}", r"img2img\.strength in .*my\.yaml: should be greater than 0, not 0"),
        ("{prompts: {happy: a}}", "img2img needs a pipeline: give generator"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_its_name(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"img2img: {text}\n")
    with pytest.raises(UsageError, match=message):
        config.load(AugmentConfig, {"src": "x"}, preset=str(tmp_path / "my.yaml"))


def test_two_prompts_for_one_expression_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="'happy' and 'joy' are the same expression"):
        opened(folder, prompts={"happy": "a", "joy": "b"})


def test_a_preset_says_what_it_is_for(tmp_path: Path, facesynth: Callable[..., Ended]) -> None:
    ended = facesynth("balance", tmp_path, "--preset", "cgan-48")
    assert ended.code == 2
    assert "cgan-48 is a preset of a training: facesynth train SRC --preset cgan-48" in ended.err
    ended = facesynth("train", tmp_path, "--preset", "img2img")
    assert ended.code == 2
    assert "img2img is a preset for facesynth balance and augment" in ended.err
