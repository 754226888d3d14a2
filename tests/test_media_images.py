"""Images from strangers: opened safely, in true colours, at the film's size."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from svi_story.errors import InputError, on_one_line
from svi_story.media import image_headers
from svi_story.media.images import PictureError, fit_picture, open_picture, pixels_digest

GRADIENT = np.stack(np.broadcast_arrays(*np.ogrid[0:180:3, 0:240:3], 99), axis=-1).astype(np.uint8)


def saved(path: Path, array: np.ndarray[Any, Any], **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def png(path: Path, width: int, height: int, depth: int, kind: int, rows: bytes) -> Path:
    """A PNG written by hand, for kinds that Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def refusal(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError) as caught:
            open_picture(path)
    error = caught.value
    assert isinstance(error, InputError)
    assert str(error) == f"the image {on_one_line(str(path))} {error.reason}"
    return error.reason


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tiff", "a.tif"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    image = open_picture(saved(tmp_path / name, GRADIENT, **options))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), GRADIENT)


def test_jpeg_by_its_content_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    saved(path, GRADIENT, format="JPEG", quality=95)
    difference = np.asarray(open_picture(path)).astype(int) - GRADIENT
    assert np.abs(difference).max() < 20


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_avif_by_its_content_not_its_name(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(GRADIENT).convert(mode).save(path, format="AVIF", quality=95, subsampling="4:4:4")
    expected = np.asarray(Image.fromarray(GRADIENT).convert(mode).convert("RGB")).astype(int)
    assert np.abs(np.asarray(open_picture(path)) - expected).max() < 12


HEIC = b"\0\0\0\x18ftyp%s\0\0\0\0mif1%s"


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1"])
def test_heic_is_named_where_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brand: bytes
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it was not installed
    (tmp_path / "a.jpg").write_bytes(HEIC % (brand, brand) + bytes(200))
    assert "is a HEIC photo; install pillow-heif" in refusal(tmp_path / "a.jpg")


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def register_heif_opener(**_options: object) -> None:
        Image.OPEN["HEIF"] = (lambda *_: Image.new("RGB", (20, 10), (9, 8, 7)), None)  # type: ignore[assignment]  # enough

    monkeypatch.setitem(
        sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register_heif_opener)
    )
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    sized = struct.pack(">I4sI", 20, b"ispe", 0) + struct.pack(">II", 20, 10)
    boxes = struct.pack(">I4sI", 48, b"meta", 0) + struct.pack(">I4s", 36, b"iprp")
    boxes += struct.pack(">I4s", 28, b"ipco") + sized
    (tmp_path / "a.jpg").write_bytes(HEIC % (b"heic", b"heic") + boxes)
    assert open_picture(tmp_path / "a.jpg").getpixel((3, 3)) == (9, 8, 7)
    huge = boxes.replace(struct.pack(">II", 20, 10), struct.pack(">II", 30_000, 30_000))
    (tmp_path / "b.jpg").write_bytes(HEIC % (b"heic", b"heic") + huge)
    assert "40 megapixels of a HEIC and" in refusal(tmp_path / "b.jpg")


OTHER_KINDS = {
    "a JPEG XL image": b"\xff\x0a" + bytes(50),
    "a JPEG 2000 image": b"\0\0\0\x0cjP  \r\n\x87\n",
    "a Photoshop file": b"8BPS\0\1" + bytes(50),
    "an SVG drawing": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a web page": b"<!doctype html><html><title>404</title></html>",
    "a Git LFS pointer; run `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "macOS metadata (AppleDouble)": b"\0\x05\x16\x07\0\2\0\0Mac OS X        ",
    "a PDF document": b"%PDF-1.7\n",
    "a video": b"\0\0\0\x14ftypisom\0\0\0\0isom",
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_are_called_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(OTHER_KINDS[kind])
    assert f"is {kind}" in refusal(tmp_path / "a.png")


def test_a_phone_jpeg_of_several_pictures_gives_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    first, second = Image.new("RGB", (32, 32), (200, 10, 10)), Image.new("RGB", (32, 32), (10, 200, 10))
    first.save(path, format="MPO", save_all=True, append_images=[second])
    assert np.abs(np.asarray(open_picture(path)).astype(int) - (200, 10, 10)).max() < 4


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for name in ("a.gif", "a.webp", "a.png", "a.avif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        difference = np.asarray(open_picture(tmp_path / name))[3, 3].astype(int) - (250, 0, 0)
        assert np.abs(difference).max() <= 4 * (name == "a.avif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.avif"])
def test_a_turned_picture_is_set_upright(tmp_path: Path, orientation: int, name: str) -> None:
    upright = Image.new("RGB", (40, 24), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 20, 12))  # red in the upper left quarter
    turned = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / name, exif=exif, quality=95, subsampling="4:4:4")
    image = open_picture(tmp_path / name)
    assert image.size == (40, 24)
    assert image.getpixel((5, 5))[0] > 200  # type: ignore[index]  # RGB images give tuples
    assert all(image.getpixel(corner)[0] < 60 for corner in ((35, 5), (5, 20), (35, 20)))  # type: ignore[index]  # as above


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", GRADIENT, exif=b"Exif\0\0MM\0*\0\0\xff\xffgarbage")
    np.testing.assert_array_equal(np.asarray(open_picture(path)), GRADIENT)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 32_896, 65_300, 65_535]], dtype=np.uint16)
    for name in ("a.png", "a.tiff"):
        image = open_picture(saved(tmp_path / name, grey))
        assert np.asarray(image)[..., 0].ravel().tolist() == [0, 1, 128, 254, 255]


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    pixels = np.array([[[0, 32_768, 65_535]]], dtype=">u2").tobytes()
    image = open_picture(png(tmp_path / "a.png", 1, 1, 16, 2, b"\0" + pixels))
    assert image.getpixel((0, 0)) == (0, 128, 255)


def test_big_endian_16_bit_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.frombytes("I;16B", (2, 1), np.array([0, 65_535], dtype=">u2").tobytes()).save(path)
    assert np.asarray(open_picture(path))[0, :, 0].tolist() == [0, 255]


def test_one_bit_grey_and_palette(tmp_path: Path) -> None:
    grey = Image.fromarray(GRADIENT).convert("L")
    for mode in ("1", "L", "P"):
        grey.convert(mode).save(tmp_path / f"{mode}.png")
        expected = np.asarray(grey.convert(mode).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / f"{mode}.png")), expected)


def test_transparency_lies_over_black(tmp_path: Path) -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], dtype=np.uint8)
    for name in ("a.png", "a.tiff"):
        image = open_picture(saved(tmp_path / name, rgba))
        assert np.asarray(image).tolist() == [[[200, 100, 50], [0, 0, 0], [40, 20, 10]]]


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([250, 0, 0, 0, 250, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "index.png", transparency=1)
    image.save(tmp_path / "bytes.png", transparency=bytes([255, 0]))
    image.save(tmp_path / "a.gif", transparency=1)
    for path in tmp_path.iterdir():
        assert np.asarray(open_picture(path)).tolist() == [[[250, 0, 0], [0, 0, 0]]]


def test_cmyk_without_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=95)
    red, green, blue = open_picture(path).getpixel((8, 8))  # type: ignore[misc]  # RGB images give tuples
    assert red > 240
    assert max(green, blue) < 15


def test_an_embedded_profile_is_followed(tmp_path: Path) -> None:
    """A profile that swaps red and green says what the colours are, whatever the numbers say."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "Swap".encode("utf-16-be")).replace(
        b"sRGB", b"Swap"
    )
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2), (250, 10, 10)).save(path, icc_profile=swapped)
    red, green, _ = open_picture(path).getpixel((0, 0))  # type: ignore[misc]  # RGB images give tuples
    assert (red, green) == pytest.approx((10, 250), abs=3)
    Image.new("RGBA", (2, 2), (250, 10, 10, 255)).save(path, icc_profile=swapped)
    red, green, _ = open_picture(path).getpixel((0, 0))  # type: ignore[misc]  # as above
    assert (red, green) == pytest.approx((10, 250), abs=3)


def test_an_srgb_profile_changes_no_pixel(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path / "a.png", GRADIENT, icc_profile=srgb)
    np.testing.assert_array_equal(np.asarray(open_picture(path)), GRADIENT)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_damaged_profile_is_ignored(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    Image.new(mode, (16, 16)).save(path, icc_profile=b"no profile at all" * 9)
    assert open_picture(path).size == (16, 16)


def test_what_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.png")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "is empty" in refusal(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("prompts = []\n")
    assert "no image of a known kind (PNG, JPEG, " in refusal(tmp_path / "text.png")
    assert "cannot be read" in refusal(Path("a\0b.png"))
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))


def test_other_decoders_are_never_tried(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "a.eps")  # Pillow would run Ghostscript
    assert "no image of a known kind" in refusal(tmp_path / "a.eps")


def test_a_pipe_or_a_device_is_refused_without_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refusal(tmp_path / "pipe.png")
    assert "not a regular file" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "a.gif", "a.avif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_truncated_image_is_refused(tmp_path: Path, name: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = saved(tmp_path / name, noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert any(word in refusal(path) for word in ("truncated or damaged", "no image of a known kind"))


def test_a_small_file_that_claims_to_be_huge_is_refused_before_decoding(tmp_path: Path) -> None:
    for width, height in ((20_000, 20_000), (40_000, 10), (2**31 - 1, 2**31 - 1)):
        reason = refusal(png(tmp_path / "bomb.png", width, height, 8, 2, b""))
        assert "too large: at most 100 megapixels and 32768 pixels a side" in reason


def test_the_largest_size_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 3000
    )  # Pillow warns from here on, as it does from 89 million
    assert open_picture(saved(tmp_path / "a.png", GRADIENT)).size == (80, 60)


def test_a_damaged_chunk_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", GRADIENT)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 10] ^= 0xFF
    path.write_bytes(data)
    assert "truncated or damaged" in refusal(path)


def test_a_webp_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """libwebp needs five times what the picture does; these 34 bytes are 16383x6000 black pixels."""
    path = tmp_path / "a.webp"
    path.write_bytes(bytes.fromhex("524946461a000000574542505650384c0e0000002ffeffdb05071011fd0f4444ff03"))
    assert "at most 40 megapixels of a WebP" in refusal(path)


def test_a_progressive_jpeg_has_room_for_its_coefficients(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", GRADIENT, progressive=True, subsampling=0)
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 9900, 9900)
    path.write_bytes(data)
    assert "at most 90 megapixels of a progressive JPEG like this" in refusal(path)


@pytest.mark.parametrize("scans", [2, 64, 65])
def test_a_progressive_jpeg_may_have_64_scans(tmp_path: Path, scans: int) -> None:
    path = saved(tmp_path / "a.jpg", GRADIENT[..., 0], progressive=True)
    data = path.read_bytes()
    last = data.rindex(b"\xff\xda")
    more = scans - data.count(b"\xff\xda")
    path.write_bytes(data[:last] + data[last:-2] * (more + 1) + b"\xff\xd9")
    if scans <= 64:
        assert open_picture(path).size == (80, 60)
    else:
        assert "it has more than 64 scans" in refusal(path)


def test_scans_of_pictures_inside_do_not_count(tmp_path: Path) -> None:
    """A thumbnail in the metadata, a second picture or a film behind the end: phones write them."""
    path = saved(tmp_path / "a.jpg", GRADIENT)
    data = path.read_bytes()
    inside = b"\xff\xda" * 99
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(inside)) + inside
    path.write_bytes(data[:2] + comment + data[2:] + inside)
    assert open_picture(path).size == (80, 60)


def test_directories_that_promise_more_than_the_file_holds(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", GRADIENT)
    data = bytearray(path.read_bytes())
    at = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, at)[0]
    place = at + 2 + 12 * (count - 1)
    struct.pack_into("<HHII", data, place, 65_000, 7, len(data) + 1, 0)
    path.write_bytes(data)
    assert "its directory declares more than the file holds" in refusal(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_profile_is_applied_in_place_as_beside(tmp_path: Path, mode: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    swapped = srgb.tobytes().replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "Swap".encode("utf-16-be"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, len(mode)), dtype=np.uint8)
    if mode == "RGBA":
        pixels[..., 3] = 255
    path = saved(tmp_path / "a.png", pixels, icc_profile=swapped)
    source = ImageCms.ImageCmsProfile(io.BytesIO(swapped))
    beside = ImageCms.profileToProfile(Image.fromarray(pixels), source, srgb)
    assert beside is not None
    np.testing.assert_array_equal(np.asarray(open_picture(path)), np.asarray(beside)[..., :3])


def test_float_pixels_are_refused_with_a_cure(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tiff", np.ones((4, 4), dtype=np.float32))
    assert "more than 16 bits; save it again as an 8-bit PNG or JPEG" in refusal(path)
    path = saved(tmp_path / "b.tiff", np.full((4, 4), 70_000, dtype=np.int32))
    assert "more than 16 bits" in refusal(path)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_damage_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    name = data.draw(st.sampled_from(["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "a.gif", "a.avif"]))
    path = saved(folder / name, GRADIENT[:20, :20])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        image = open_picture(path)
    except PictureError:
        return
    assert image.mode == "RGB"


sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@given(source=sizes, target=sizes, fit=st.sampled_from(["crop", "pad", "stretch"]))
@settings(deadline=None)
def test_every_fit_gives_exactly_the_size(source: tuple[int, int], target: tuple[int, int], fit: Any) -> None:
    frame = fit_picture(Image.new("RGB", source, (9, 99, 199)), *target, fit)
    assert frame.shape == (target[1], target[0], 3)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    if fit != "pad":
        assert (frame == (9, 99, 199)).all()


def test_the_right_size_is_left_alone() -> None:
    for fit in ("crop", "pad", "stretch"):
        np.testing.assert_array_equal(fit_picture(Image.fromarray(GRADIENT), 80, 60, fit), GRADIENT)


def test_crop_keeps_the_middle_pad_the_whole_stretch_the_edges() -> None:
    bars = np.zeros((20, 60, 3), np.uint8)
    bars[:, :20, 0] = bars[:, 20:40, 1] = bars[:, 40:, 2] = 255  # red, green, blue
    image = Image.fromarray(bars)
    crop = fit_picture(image, 20, 20, "crop")
    assert (crop[:, 3:-3, 1] > 240).all()
    pad = fit_picture(image, 60, 60, "pad")
    assert not pad[:20].any()
    assert not pad[40:].any()
    np.testing.assert_array_equal(pad[20:40], bars)
    stretch = fit_picture(image, 60, 60, "stretch")
    np.testing.assert_array_equal(stretch[30], bars[0])


def test_extreme_shapes_still_fit() -> None:
    for size in ((30_000, 1), (1, 30_000)):
        for fit in ("crop", "pad", "stretch"):
            assert fit_picture(Image.new("RGB", size), 32, 16, fit).shape == (16, 32, 3)


def test_the_digest_is_of_the_rgb_bytes_row_by_row() -> None:
    assert pixels_digest(np.zeros((0, 0, 3), np.uint8)).startswith("e3b0c44298fc1c14")
    assert pixels_digest(GRADIENT) == pixels_digest(np.asfortranarray(GRADIENT))
    assert pixels_digest(GRADIENT) != pixels_digest(GRADIENT[::-1])


def test_the_limits_are_what_the_messages_say() -> None:
    assert image_headers.MAX_PIXELS == 100_000_000
    assert image_headers.MAX_SIDE == 32_768


def test_a_palette_picture_without_a_palette(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\1\2\3\4" * 4))
    path = tmp_path / "bare.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    with pytest.raises(PictureError, match="unusual kind"):
        open_picture(path)


def test_a_file_that_is_far_too_large_is_not_searched(tmp_path: Path) -> None:
    path = tmp_path / "endless.gif"
    with path.open("wb") as file:
        file.write(b"GIF89a")
        file.truncate(100 * 10**9)
    with pytest.raises(PictureError, match="larger than 300 MiB"):
        open_picture(path)
