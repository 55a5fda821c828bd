"""An image file's bytes to pixels and back: what is written looks, as a file, like the file it came from."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from PIL.Image import Transpose

from facesynth.console import FacesynthError, printable, warn

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF")
"""What is opened. A closed list, because some of Pillow's other readers start programs (EPS: Ghostscript)."""

SYNTHETIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC digital source type of images made by a trained model."""

_ORIENTATION = 0x0112
_XMP = 700
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_AS_STORED = _UPRIGHT | {6: Transpose.ROTATE_90, 8: Transpose.ROTATE_270}
_DEEP = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I": "=i4"}

Pixels = npt.NDArray[np.float32]
Plane = npt.NDArray[np.uint8]


class UnreadableImage(FacesynthError):  # noqa: N818
    """A file that should be an image and cannot be read as one."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a file was written: all that is needed to write another one like it.

    `carried` (H, W) uint8 is the plane that an edit leaves alone: alpha, or the black of CMYK. `palette` (K, 4) uint8
    RGBA. `options` are keyword arguments of Pillow's `save`; `lossy_bytes` is the file's size where quality is unknown.
    """

    format: str
    mode: str
    channels: int
    carried: Plane | None = None
    palette: Plane | None = None
    orientation: int = 1
    lossy_bytes: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Photo:
    """Pixels float32 (H, W, C) in [0, 1], C 1 (gray) or 3 (RGB), upright; and how their file was written."""

    pixels: Pixels
    encoding: Encoding


def to_gray(pixels: Pixels) -> Pixels:
    """Luma (H, W) of pixels (H, W, C), by ITU-R BT.601 like Pillow's mode L."""
    if pixels.shape[2] == 1:
        return pixels[:, :, 0]
    return pixels @ np.array([0.299, 0.587, 0.114], np.float32)


def to_colour(pixels: Pixels) -> Pixels:
    """RGB (H, W, 3) of pixels (H, W, C): three equal channels where there is one."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def in_form_of(pattern: Photo, pixels: Pixels) -> Photo:
    """A picture (h, w, C) in the form of another photo: as large as fits into it, gray or colour like it, for a file like its.

    What the pattern carries beside its colours belongs to its own picture: alpha becomes opaque, and the black of CMYK none.
    """
    scale = min(whole / own for whole, own in zip(pattern.pixels.shape[:2], pixels.shape[:2], strict=True))
    height, width = (round(scale * own) for own in pixels.shape[:2])
    shrinks = scale < 1
    scaled = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    resized: Pixels = scaled.reshape(height, width, -1).astype(np.float32)
    encoding = pattern.encoding
    if encoding.carried is not None:
        plain = 0 if encoding.mode == "CMYK" else 255
        encoding = replace(encoding, carried=np.full((height, width), plain, np.uint8))
    return Photo(to_gray(resized)[:, :, None] if encoding.channels == 1 else to_colour(resized), encoding)


def decode(data: bytes, where: str | Path) -> Photo:
    """Read an image file's bytes; `where` names it in errors. Of an animation the first frame is read.

    Raises UnreadableImage for anything that is not a whole, supported image, and for images over Pillow's pixel limit.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
            _warn_of_lost_depth(image)
            image.load()
            return _photo(image, data)
    except Exception as error:  # Pillow's readers raise nearly every class there is on broken files
        reason = _reason(error, data)
        raise UnreadableImage(f"{printable(where)}: {reason}; replace the file or take it out.") from error


def encode(pixels: Pixels, encoding: Encoding, provenance: Mapping[str, object] | None = None) -> bytes:
    """Write pixels (H, W, C) in [0, 1] like `encoding` says; values are rounded, and clipped to the range.

    `provenance` (source, generator, seed, ...) marks the file as synthetic in an uncompressed XMP packet. BMP, GIF and
    PPM cannot hold one. Raises ValueError where pixels do not fit the encoding.
    """
    if pixels.ndim != 3 or pixels.shape[2] != encoding.channels or not np.isfinite(pixels).all():
        raise ValueError(f"expected finite pixels (H, W, {encoding.channels}), got shape {pixels.shape}")
    if encoding.carried is not None and encoding.carried.shape != pixels.shape[:2]:
        raise ValueError(f"the carried plane is {encoding.carried.shape}, the pixels are {pixels.shape[:2]}")
    image = _pack(np.clip(pixels, 0, 1), encoding)
    options = dict(encoding.options)
    if encoding.orientation in _AS_STORED:
        image = image.transpose(_AS_STORED[encoding.orientation])
        options["exif"] = _orientation_exif(encoding.orientation)
    if encoding.lossy_bytes is not None:
        options["quality"] = _matching_quality(image, encoding.format, options, encoding.lossy_bytes)
    if provenance is not None:
        options |= _provenance_options(encoding.format, _xmp_packet(provenance))
    return _saved(image, encoding.format, options)


def _saved(image: Image.Image, file_format: str, options: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "the file is not an image of a known format"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"the image is too large to be safe ({error}; the limit is {Image.MAX_IMAGE_PIXELS:,} pixels)"
    return f"the image is broken or not supported ({printable(error)})"


def _warn_of_lost_depth(image: Image.Image) -> None:
    tile = getattr(image, "tile", None)
    if image.mode in ("RGB", "RGBA") and tile and ";16" in str(tile[0].args):
        warn("16-bit colour images are read and written with 8 bits a channel (16-bit gray stays 16-bit).")


def _photo(image: Image.Image, data: bytes) -> Photo:
    options, lossy_bytes = _save_options(image, data)
    file_format = {"MPO": "JPEG", "DIB": "BMP"}.get(str(image.format), str(image.format))
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    pixels, carried, palette = _unpack(image)
    encoding = Encoding(file_format, image.mode, pixels.shape[2], carried, palette, orientation, lossy_bytes, options)
    return Photo(pixels, encoding)


def _save_options(image: Image.Image, data: bytes) -> tuple[dict[str, Any], int | None]:
    info = image.info
    options = {key: info[key] for key in ("icc_profile", "transparency") if info.get(key) is not None}
    if "dpi" in info:
        options["dpi"] = tuple(float(value) for value in info["dpi"])
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        options |= {"qtables": [list(table) for table in image.quantization.values()]}
        options |= {"progressive": bool(info.get("progressive"))}
        sampling = JpegImagePlugin.get_sampling(image)
        return options | ({"subsampling": sampling} if sampling >= 0 else {}), None
    if image.format == "TIFF":
        options["compression"] = info.get("compression", "raw")
    if image.format == "WEBP" and _webp_is_lossless(data):
        return options | {"lossless": True, "exact": True}, None
    return options, len(data) if image.format in ("WEBP", "AVIF") else None


def _webp_is_lossless(data: bytes) -> bool:
    start = 12
    while start + 8 <= len(data):
        if data[start : start + 4] in (b"VP8L", b"VP8 "):
            return data[start : start + 4] == b"VP8L"
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + size + size % 2
    return False


def _unpack(image: Image.Image) -> tuple[Pixels, Plane | None, Plane | None]:
    """Pixels, the plane to carry over, the palette."""
    if image.mode in _DEEP:
        return _unpack_deep(image), None, None
    if image.mode == "P":
        table = _rgba_palette(image)
        rgba = table[np.asarray(image)]
        gray = bool((table[:, :3] == table[:, :1]).all())
        return _to_float(rgba[:, :, : 1 if gray else 3]), np.ascontiguousarray(rgba[:, :, 3]), table
    if image.mode in ("1", "L"):
        return _to_float(np.asarray(image.convert("L"))[:, :, None]), None, None
    if image.mode in ("LA", "RGB", "RGBA"):
        planes = np.asarray(image)
        colour = 1 if image.mode == "LA" else 3
        carried = np.ascontiguousarray(planes[:, :, colour]) if planes.shape[2] > colour else None
        return _to_float(planes[:, :, :colour]), carried, None
    if image.mode == "CMYK":
        return _to_float(np.asarray(image.convert("RGB"))), np.asarray(image)[:, :, 3].copy(), None
    raise ValueError(f"colour mode {image.mode}: save it as gray or RGB with 8 or 16 bits")


def _unpack_deep(image: Image.Image) -> Pixels:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit values: save it with 8 or 16 bits")
    return (values[:, :, None] / np.float32(65535)).astype(np.float32)


def _to_float(values: npt.NDArray[np.uint8]) -> Pixels:
    return values.astype(np.float32) / np.float32(255)


def _rgba_palette(image: Image.Image) -> Plane:
    colours = len(image.getpalette() or []) // 3
    strip = Image.frombytes("P", (colours, 1), bytes(range(colours)))
    strip.putpalette(image.getpalette() or [])
    if "transparency" in image.info:
        strip.info["transparency"] = image.info["transparency"]
    table: Plane = np.asarray(strip.convert("RGBA"))[0].copy()
    return table


def _pack(pixels: Pixels, encoding: Encoding) -> Image.Image:
    if encoding.mode in _DEEP:
        deep = np.rint(pixels[:, :, 0].astype(np.float64) * 65535).astype(_DEEP[encoding.mode])
        return Image.frombytes(encoding.mode, deep.shape[::-1], deep.tobytes())
    values = np.rint(pixels * 255).astype(np.uint8)
    if encoding.palette is not None:
        return _pack_palette(values, encoding)
    if encoding.mode == "CMYK":
        return _pack_cmyk(values, encoding)
    if encoding.carried is not None:
        values = np.dstack([values, encoding.carried])
    image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    return image.convert("1") if encoding.mode == "1" else image


def _pack_palette(values: Plane, encoding: Encoding) -> Image.Image:
    """The nearest palette colour of each pixel, row by row; transparency outweighs any difference of colour."""
    assert encoding.palette is not None
    assert encoding.carried is not None
    rgb = values if values.shape[2] == 3 else values.repeat(3, axis=2)
    weight = np.array([1, 1, 1, 2], np.float32)
    pixels = np.dstack([rgb, encoding.carried]) * weight
    table = encoding.palette * weight
    squares = (table**2).sum(1)
    indices = np.stack([np.argmin(squares - 2 * (row @ table.T), axis=1) for row in pixels])
    image = Image.fromarray(indices.astype(np.uint8)).convert("L")
    image.putpalette(encoding.palette[:, :3].tobytes())
    return image


def _pack_cmyk(values: Plane, encoding: Encoding) -> Image.Image:
    """Ink by Pillow's own naive conversion, keeping as much of the source's black as the new colours allow."""
    assert encoding.carried is not None
    black = np.minimum(encoding.carried, 255 - values.max(axis=2))[:, :, None]
    light = np.rint(values * 255.0 / np.maximum(255.0 - black, 1))
    ink = np.dstack([255 - np.clip(light, 0, 255), black]).astype(np.uint8)
    return Image.frombytes("CMYK", ink.shape[1::-1], ink.tobytes())


def _orientation_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif.tobytes()


def _matching_quality(image: Image.Image, file_format: str, options: Mapping[str, Any], size: int) -> int:
    """Lossy WebP and AVIF do not tell their quality: the one whose file is about as large as the source's."""
    low, high = 1, 100
    while low < high:
        middle = (low + high) // 2
        if len(_saved(image, file_format, {**options, "quality": middle})) < size:
            low = middle + 1
        else:
            high = middle
    return low


def _provenance_options(file_format: str, packet: bytes) -> dict[str, Any]:
    if file_format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", packet.decode(), zip=False)
        return {"pnginfo": chunks}
    if file_format == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[_XMP] = packet
        return {"tiffinfo": tags}
    return {"xmp": packet} if file_format in ("JPEG", "WEBP", "AVIF") else {}


def _xmp_packet(provenance: Mapping[str, object]) -> bytes:
    """An XMP packet (ISO 16684-1) with the IPTC digital source type and one facesynth field per item."""
    fields = "".join(f"\n   facesynth:{key}={quoteattr(printable(value))}" for key, value in provenance.items())
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
   xmlns:xmp="http://ns.adobe.com/xap/1.0/"
   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   xmlns:facesynth="urn:facesynth:provenance#"
   Iptc4xmpExt:DigitalSourceType="{SYNTHETIC_MEDIA}"
   xmp:CreatorTool="facesynth"{fields}/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>""".encode()
