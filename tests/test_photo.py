"""Image files: what is read is written back alike, says that it is synthetic, and broken ones are refused by name."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree

import faces
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from facesynth.photo import SYNTHETIC_MEDIA, UnreadableImage, decode, encode, to_gray

PROVENANCE = {"source": 'happy/im <3> & "four".png', "generator": "editor-48", "seed": 7}
PROFILE = b"\0" * 36 + b"acsp" + b"\0" * 88


def stored(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def face(mode: str, size: int = 40) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(faces.draw("happy", 1, size).astype(np.uint16) * 251 + 7)
    image = Image.fromarray(faces.draw("happy", 1, size, colour=True))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.quantize(60) if mode == "P" else image.convert(mode)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("file_format", "mode", "options"),
    [
        *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        ("PNG", "RGB", {"icc_profile": PROFILE}),
        ("PNG", "P", {"transparency": bytes([0, 128, 255])}),
        ("BMP", "L", {}),
        ("BMP", "RGB", {}),
        ("GIF", "P", {}),
        ("GIF", "P", {"transparency": 3}),
        ("PPM", "L", {}),
        ("PPM", "RGB", {}),
        ("TIFF", "I;16", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGBA", {"lossless": True, "exact": True}),
    ],
)
def test_lossless_files_come_back_pixel_for_pixel(file_format: str, mode: str, options: dict[str, Any]) -> None:
    data = stored(face(mode), file_format, **options)
    photo = decode(data, "here")
    assert photo.pixels.dtype == np.float32
    assert photo.pixels.shape == (40, 40, photo.encoding.channels)
    again = encode(photo.pixels, photo.encoding, PROVENANCE)
    source, result = opened(data), opened(again)
    assert (result.format, result.mode, result.size) == (source.format, source.mode, source.size)
    assert result.info.get("icc_profile") == source.info.get("icc_profile")
    np.testing.assert_array_equal(np.asarray(result.convert("RGBA")), np.asarray(source.convert("RGBA")))
    np.testing.assert_array_equal(decode(again, "again").pixels, photo.pixels)


def test_sixteen_bits_keep_all_their_values() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    photo = decode(stored(Image.fromarray(values), "PNG"), "here")
    np.testing.assert_array_equal(np.asarray(opened(encode(photo.pixels, photo.encoding))), values)


def test_cmyk_keeps_its_black_and_its_colours() -> None:
    ink = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    data = stored(Image.frombytes("CMYK", (64, 64), ink.tobytes()), "TIFF")
    photo = decode(data, "here")
    result = opened(encode(photo.pixels, photo.encoding))
    np.testing.assert_array_equal(np.asarray(result)[:, :, 3], ink[:, :, 3])
    np.testing.assert_array_equal(np.asarray(result.convert("RGB")), np.asarray(opened(data).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_keeps_tables_and_subsampling(mode: str, subsampling: int) -> None:
    data = stored(face(mode), "JPEG", quality=83, subsampling=subsampling, progressive=True)
    photo = decode(data, "here")
    source, result = opened(data), opened(encode(photo.pixels, photo.encoding, PROVENANCE))
    assert isinstance(source, JpegImagePlugin.JpegImageFile)
    assert isinstance(result, JpegImagePlugin.JpegImageFile)
    assert result.quantization == source.quantization
    assert JpegImagePlugin.get_sampling(result) == JpegImagePlugin.get_sampling(source)
    assert (result.mode, "progressive" in result.info) == (mode, True)
    assert np.abs(decode(data, "here").pixels - photo.pixels).max() < 0.1


@pytest.mark.parametrize("file_format", ["WEBP", "AVIF"])
def test_lossy_files_keep_about_their_size(file_format: str) -> None:
    for quality in (20, 90):
        data = stored(face("RGB", 128), file_format, quality=quality)
        photo = decode(data, "here")
        assert len(encode(photo.pixels, photo.encoding)) == pytest.approx(len(data), rel=0.15)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_rotated_files_are_read_upright_and_shown_alike(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = face("RGB", 48).crop((0, 0, 48, 32))
    data = stored(image, file_format, exif=exif)
    photo = decode(data, "here")
    assert photo.pixels.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    again = encode(photo.pixels, photo.encoding, PROVENANCE)
    assert opened(again).size == opened(data).size
    assert np.abs(decode(again, "again").pixels - photo.pixels).mean() < 0.02


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_provenance_is_plain_text_that_readers_find(file_format: str) -> None:
    photo = decode(stored(face("RGB"), file_format), "here")
    data = encode(photo.pixels, photo.encoding, PROVENANCE)
    packet = data[data.index(b"<x:xmpmeta") : data.index(b"</x:xmpmeta>") + len(b"</x:xmpmeta>")]
    (description,) = ElementTree.fromstring(packet)[0]
    described = {name.partition("}")[2]: value for name, value in description.attrib.items()}
    assert described["DigitalSourceType"] == SYNTHETIC_MEDIA
    assert described["CreatorTool"] == "facesynth"
    assert (described["source"], described["seed"]) == (PROVENANCE["source"], "7")
    info = opened(data).info
    assert packet in (info.get("xmp") or info["XML:com.adobe.xmp"].encode())
    assert SYNTHETIC_MEDIA.encode() not in encode(photo.pixels, photo.encoding)


def test_edited_palette_images_stay_in_their_palette() -> None:
    photo = decode(stored(face("P"), "GIF"), "here")
    edited = opened(encode(photo.pixels[:, ::-1] * 0.9, photo.encoding))
    assert edited.mode == "P"
    assert photo.encoding.palette is not None
    allowed = {tuple(colour) for colour in photo.encoding.palette[:, :3]}
    assert {tuple(colour) for colour in np.asarray(edited.convert("RGB")).reshape(-1, 3)} <= allowed


def test_pixels_that_do_not_fit_are_refused() -> None:
    photo = decode(stored(face("RGBA"), "PNG"), "here")
    for wrong in (photo.pixels[:, :, :1], photo.pixels[:20], photo.pixels * np.nan):
        with pytest.raises(ValueError, match=r"expected finite pixels|carried plane"):
            encode(wrong, photo.encoding)


def test_luma_is_that_of_pillow() -> None:
    image = face("RGB")
    photo = decode(stored(image, "PNG"), "here")
    np.testing.assert_allclose(to_gray(photo.pixels) * 255, np.asarray(image.convert("L")), atol=0.6)


def broken(kind: str) -> bytes:
    jpeg = stored(face("RGB", 64), "JPEG")
    return {
        "empty": b"",
        "text": b"this is no image\n" * 10,
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "truncated png": stored(face("RGB", 64), "PNG")[:-300],
        "float": stored(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
        "postscript": stored(face("RGB"), "EPS"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("empty", "the file is empty"),
        ("text", "not an image of a known format"),
        ("truncated jpeg", "broken"),
        ("truncated png", "broken"),
        ("float", "colour mode F: save it as gray or RGB"),
        ("postscript", "not an image of a known format"),
    ],
)
def test_broken_files_are_named(kind: str, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=f"^happy/im1.png: .*{reason}.*; replace the file"):
        decode(broken(kind), "happy/im1.png")


@pytest.mark.parametrize("limit", [1000, 600])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = stored(face("L"), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImage, match=r"bomb\.png: the image is too large to be safe"):
        decode(data, "bomb.png")
