"""Untrusted images, opened safely, as plain 8-bit sRGB; and fitted to the film's size."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from svi_story.errors import InputError, Problem
from svi_story.files import open_regular, why_not_opened
from svi_story.media.image_headers import MAX_PIXELS, MAX_SIDE, Header, known_kind, read_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MAX_BYTES = 300 * 2**20
"""Larger files hold no usable picture, and searching them for one could take for ever."""
BACKGROUND = (0, 0, 0)
"""Behind transparent pixels: black, as the bars of `fit: pad`."""

_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_REMEDY = "save it again as an 8-bit PNG or JPEG"
_ORIENTATION = 0x0112
_STRIP_PIXELS = 2**20
"""Pixels that are converted at a time."""
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(InputError):
    """An image that cannot be used. `reason` says why and what to do, without naming the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(Problem(f"the image {path} {reason}"))
        self.reason = reason


def open_picture(path: Path) -> Image.Image:
    """Read an image file as upright 8-bit sRGB (mode RGB); of an animation, the first frame.

    Transparency is laid over `BACKGROUND`, an embedded colour profile is converted to sRGB, 16-bit grey is
    scaled. The sizes in the file's header are checked before anything is decoded. For untrusted files use
    `svi_story.media.guard`, which calls this in a process with limits.

    Raises PictureError for anything that is no readable image of `FORMATS`.
    """
    with open_image(path) as file:
        return read_picture(path, file)


def read_picture(
    path: Path, file: BinaryIO, allow: Callable[[Header], None] = lambda _header: None
) -> Image.Image:
    """`open_picture` of a file that is open already; `path` names it in errors.

    `allow` gets the header before anything is decoded.
    """
    # Pillow warns about sizes that our own limit judges, and about metadata that no pixel depends on.
    # Not with `catch_warnings`: it puts the filters of all threads back to what they were for one of them.
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW_WARNINGS[3].pattern)
    try:
        return _as_rgb(path, _decoded(path, file, allow))
    except MemoryError:
        raise PictureError(path, f"needs too much memory to be read; make it smaller, or {_REMEDY}") from None


def fit_picture(
    image: Image.Image, width: int, height: int, fit: Literal["crop", "pad", "stretch"]
) -> NDArray[np.uint8]:
    """Fit an RGB image to a size: height x width x 3, uint8.

    crop fills the frame and cuts off the rest, centred; pad keeps everything, centred on black; stretch
    ignores the aspect ratio.
    """
    if fit == "crop":
        fitted = image.resize((width, height), Image.Resampling.LANCZOS, box=_cover(image, width, height))
    elif fit == "pad":
        fitted = _padded(image, width, height)
    else:
        fitted = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(fitted, dtype=np.uint8)


def pixels_digest(frame: NDArray[np.uint8]) -> str:
    """The sha256 (hex) of a picture's RGB bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest()


def open_image(path: Path) -> BinaryIO:
    """Open a regular file of at most MAX_BYTES. Raises PictureError for anything else, and never blocks."""
    try:
        file = open_regular(path)
    except (OSError, ValueError) as error:
        raise PictureError(path, why_not_opened(error, "an image file")) from None
    size = os.fstat(file.fileno()).st_size
    if 0 < size <= MAX_BYTES:
        return file
    file.close()
    if size == 0:
        raise PictureError(path, "is empty (0 bytes); copy or save it again")
    raise PictureError(path, f"is larger than {MAX_BYTES // 2**20} MiB; {_REMEDY}")


def _decoded(path: Path, file: BinaryIO, allow: Callable[[Header], None]) -> Image.Image:
    try:
        header = read_header(file)
        if header is None:
            kind = known_kind(file) or f"no image of a known kind ({', '.join(FORMATS)})"
            raise PictureError(path, f"is {kind}" if ";" in kind else f"is {kind}; {_REMEDY}")
        for size in header.sizes:
            _check_size(path, size, header)
        if header.format == "HEIF":
            _register_heif(path)
        allow(header)
        file.seek(0)
        image = Image.open(file, formats=[header.format])
        _check_size(path, image.size, header)
        image.load()
    except (PictureError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise PictureError(path, f"is truncated or damaged; {_REMEDY}") from None
    except Image.DecompressionBombError:
        raise PictureError(path, _too_large("more pixels than that")) from None
    except Exception as error:  # noqa: BLE001 - on hostile files decoders raise anything
        detail = str(error).strip() or type(error).__name__
        raise PictureError(path, f"is truncated or damaged ({detail}); {_REMEDY}") from None
    return image


def _register_heif(path: Path) -> None:
    """Let Pillow read HEIC, where pillow-heif is installed."""
    try:
        plugin = import_module("pillow_heif")
    except ImportError:
        what = "is a HEIC photo; install pillow-heif (`pip install pillow-heif`), or save it as a PNG or JPEG"
        raise PictureError(path, what) from None
    plugin.register_heif_opener(decode_threads=1, thumbnails=False)


def _check_size(path: Path, size: tuple[int, int], header: Header) -> None:
    width, height = size
    if width * height > header.most_pixels or max(size) > MAX_SIDE:
        kind = f" of a {header.kind}" if header.most_pixels < MAX_PIXELS else ""
        raise PictureError(path, _too_large(f"{width}x{height}", header.most_pixels, kind))


def _too_large(got: str, most: int = MAX_PIXELS, kind: str = "") -> str:
    limit = f"at most {most // 1_000_000} megapixels{kind} and {MAX_SIDE} pixels a side are read"
    return f"is too large: {limit}, and it has {got}; make it smaller"


def _as_rgb(path: Path, image: Image.Image) -> Image.Image:
    """As upright sRGB. At most two pictures of this size are in memory at a time."""
    transpose = _TRANSPOSE.get(_orientation(image))
    profile = image.info.get("icc_profile")
    try:
        image = _in_known_mode(path, image)
        image = _to_srgb(image, profile)
    except (PictureError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a missing palette fails an assertion of Pillow's
        raise PictureError(path, f"has pixels of an unusual kind ({image.mode}); {_REMEDY}") from None
    if image.mode == "RGBA":
        background = Image.new("RGB", image.size, BACKGROUND)
        background.paste(image, mask=image)
        image = background
    image = _converted(image, "RGB")
    return image if transpose is None else image.transpose(transpose)


def _in_known_mode(path: Path, image: Image.Image) -> Image.Image:
    """As RGB, RGBA or CMYK, 8 bits per channel."""
    if image.mode == "CMYK":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = _from_16_bit(path, image)
    return _converted(image, "RGBA" if image.has_transparency_data else "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Convert to a mode; Pillow would copy an image that has it already."""
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged metadata raises anything, and no pixel depends on it
        return 1


def _from_16_bit(path: Path, image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; Pillow's own conversion would clip it."""
    scaled = Image.new("L", image.size)
    rows = max(_STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        grey = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65_535:
            raise PictureError(path, f"has pixels of more than 16 bits; {_REMEDY}")
        scaled.paste(Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)), (0, top))
    return scaled


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert RGB, RGBA (both in place) or CMYK by its embedded profile, if it is not sRGB already."""
    if not profile:
        return image
    in_place = image.mode != "CMYK"
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        srgb = ImageCms.createProfile("sRGB")
        mode = None if in_place else "RGB"
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode=mode, inPlace=in_place)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a damaged profile, or one for other channels: the pixels alone still make a picture
    return image if converted is None else converted


def _cover(image: Image.Image, width: int, height: int) -> tuple[float, float, float, float]:
    """The largest centred box of the target's shape, in source pixels."""
    scale = min(image.width / width, image.height / height)
    box_width, box_height = min(width * scale, image.width), min(height * scale, image.height)
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    return left, top, left + box_width, top + box_height


def _padded(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    inner = (
        min(width, max(1, round(image.width * scale))),
        min(height, max(1, round(image.height * scale))),
    )
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas.paste(image.resize(inner, Image.Resampling.LANCZOS), corner)
    return canvas
