"""Lossless frames on disk: exact, counted, by number in any order, and nothing half-written."""

from __future__ import annotations

import os
import resource
import struct
from contextlib import contextmanager
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svi_story.cache.frames import Frames, write_frames
from svi_story.errors import RenderError
from svi_story.files import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

FPS = Fraction(15)


def noise(n: int, height: int = 48, width: int = 64) -> list[Frame]:
    return list(np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to write a file further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("fps", [Fraction(1), FPS, Fraction(24000, 1001), Fraction(2997, 125), Fraction(240)])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 1280), (480, 32), (240, 416)])
def test_what_was_written_is_read(tmp_path: Path, fps: Fraction, height: int, width: int) -> None:
    frames = noise(6, height, width)
    assert write_frames(tmp_path / "a.avi", iter(frames), fps) == 6
    with Frames(tmp_path / "a.avi") as read:
        assert len(read) == 6
        assert (read.width, read.height) == (width, height)
        assert all(np.array_equal(one, other) for one, other in zip(read, frames, strict=True))
        assert np.array_equal(read.last(), frames[-1])


def test_every_colour_and_every_layout(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8)
    red, green = np.meshgrid(ramp, ramp)
    frames = [np.dstack([red, green, np.full_like(red, blue)]) for blue in (0, 1, 128, 255)]
    turned = [frame[::-1, ::-1] for frame in frames]
    write_frames(tmp_path / "a.avi", turned, FPS)
    with Frames(tmp_path / "a.avi") as read:
        assert all(np.array_equal(one, other) for one, other in zip(read, turned, strict=True))


@pytest.mark.parametrize("share", [0.001, 0.003, 0.0034, 0.0036, 0.004, 0.05])
@pytest.mark.parametrize(("height", "width"), [(480, 16), (480, 32), (240, 64), (480, 832)])
def test_frames_that_hardly_compress(tmp_path: Path, height: int, width: int, share: float) -> None:
    """UT Video, for one, loses the end of them without a word."""
    chance = np.random.default_rng(1)
    frames = noise(4, height, width)
    for frame in frames:
        frame[chance.random(frame.shape) < share] = 7
    write_frames(tmp_path / "a.avi", frames, FPS)
    with Frames(tmp_path / "a.avi") as read:
        assert all(np.array_equal(one, other) for one, other in zip(read, frames, strict=True))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frames") / "odd: name %03d ü.avi"
    write_frames(path, noise(20), FPS)
    return path


@settings(max_examples=50, deadline=None)
@given(order=st.lists(st.integers(0, 19), max_size=12))
def test_any_order(file: Path, order: list[int]) -> None:
    frames = noise(20)
    with Frames(file) as read:
        for k in order:
            assert np.array_equal(read[k], frames[k])


@pytest.mark.parametrize("k", [-1, 20, 10**9])
def test_no_such_frame(file: Path, k: int) -> None:
    with Frames(file) as read, pytest.raises(IndexError):
        read[k]


def test_a_relative_name_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from pathlib import Path

    write_frames(Path("http:a.avi"), noise(2), FPS)
    with Frames(Path("http:a.avi")) as read:
        assert len(read) == 2


def test_equal_frames_make_equal_files(tmp_path: Path) -> None:
    for name in ("a.avi", "b.avi"):
        write_frames(tmp_path / name, noise(3), FPS)
    assert (tmp_path / "a.avi").read_bytes() == (tmp_path / "b.avi").read_bytes()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to take cores away")
def test_the_number_of_cores_is_not_in_the_bytes(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    write_frames(tmp_path / "all.avi", noise(3), FPS)
    os.sched_setaffinity(0, {min(cores)})
    try:
        write_frames(tmp_path / "one.avi", noise(3), FPS)
    finally:
        os.sched_setaffinity(0, cores)
    assert (tmp_path / "all.avi").read_bytes() == (tmp_path / "one.avi").read_bytes()


def test_no_frames_make_no_file(tmp_path: Path) -> None:
    assert write_frames(tmp_path / "a.avi", [], FPS) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("no more"), KeyboardInterrupt(), OSError(5, "engine's own")])
def test_an_error_of_the_source_comes_through(tmp_path: Path, error: BaseException) -> None:
    def source() -> Iterator[Frame]:
        yield from noise(3)
        raise error

    with pytest.raises(type(error)) as raised:
        write_frames(tmp_path / "a.avi", source(), FPS)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_frames_of_two_sizes_are_a_bug(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"frame 1 is \(16, 16, 3\)"):
        write_frames(tmp_path / "a.avi", [*noise(1), *noise(1, 16, 16)], FPS)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_text("mine")
    with pytest.raises(RenderError, match="move away"):
        write_frames(tmp_path / "a.avi", noise(1), FPS)
    assert (tmp_path / "a.avi").read_text() == "mine"


def test_a_refusal_at_any_size_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_frames(path, noise(9), FPS)
    whole = path.stat().st_size
    path.unlink()
    sizes = [*range(0, whole, whole // 40), *range(whole - 40, whole)]
    for size in sizes:
        with largest_file(size), pytest.raises(RenderError) as raised:
            write_frames(path, noise(9), FPS)
        assert str(path) in str(raised.value)
        assert not path.exists()
    with largest_file(whole):
        assert write_frames(path, noise(9), FPS) == 9


def test_a_damaged_file_is_an_error_or_shorter_but_never_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_frames(path, noise(5), FPS)
    data = path.read_bytes()
    chance = np.random.default_rng(1)
    for n in range(60):
        damaged = bytearray(data[: chance.integers(len(data))] if n % 2 else data)
        for position in chance.integers(0, len(damaged), 20 if n % 2 == 0 else 0):
            damaged[position] ^= 1 << chance.integers(8)
        path.write_bytes(damaged)
        try:
            with Frames(path) as read:
                assert len(list(read)) <= max(len(read), 5)
        except (CorruptError, IndexError):
            continue


def test_what_is_no_video_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("#EXTM3U\nhttp://example.com/a.ts")
    (tmp_path / "empty.avi").touch()
    (tmp_path / "folder.avi").mkdir()
    for name in ("text.avi", "empty.avi", "folder.avi", "none.avi"):
        with pytest.raises(CorruptError):
            Frames(tmp_path / name)


@pytest.mark.parametrize("size", [(30_000, 30_000), (4096, 4096), (0, 64), (-64, 48), (2**31 - 1, 2**31 - 1)])
def test_a_size_that_the_file_cannot_hold_reaches_no_library(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.avi"
    write_frames(path, noise(3), FPS)
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 12
    data[at : at + 8] = struct.pack("<ii", *size)
    path.write_bytes(data)
    monkeypatch.setattr("av.open", None)
    with pytest.raises(CorruptError, match="too few for frames of"):
        Frames(path)
    path.write_bytes(data[:at])
    with pytest.raises(CorruptError, match="has 0 streams, not one"):
        Frames(path)


def test_the_smallest_frames_there_can_be_are_read(tmp_path: Path) -> None:
    black = np.zeros((1088, 1920, 3), np.uint8)
    write_frames(tmp_path / "a.avi", [black], FPS)
    with Frames(tmp_path / "a.avi") as read:
        assert np.array_equal(read[0], black)


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Peak memory after reading 40 frames of 1.2 MB in and out of order, many times over."""
    write_frames(tmp_path / "a.avi", noise(40, 480, 832), FPS)
    with Frames(tmp_path / "a.avi") as read:
        for k in range(40):
            read[k]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for k in (*range(39, 0, -1), *range(40)):
            read[k]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * 1024


@pytest.mark.skipif(
    "SVI_STORY_BIG_TESTS" not in os.environ, reason="writes 4.5 GB; set SVI_STORY_BIG_TESTS=1"
)
def test_over_four_gigabytes(tmp_path: Path) -> None:
    """AVI indexes are 32 bits wide; OpenDML adds another per gigabyte."""
    ground = noise(1, 1088, 1920)[0]

    def numbered(k: int) -> Frame:
        frame = np.roll(ground, k, axis=0)
        frame[0, :16] = [[255 * (k >> bit & 1)] * 3 for bit in range(16)]
        return frame

    path = tmp_path / "big.avi"
    assert write_frames(path, map(numbered, range(700)), FPS) == 700
    assert path.stat().st_size > 4 * 2**30
    with Frames(path) as read:
        assert len(read) == 700
        for k in (699, 0, *range(100, 700, 37), 698):
            assert np.array_equal(read[k], numbered(k))
        for k, frame in zip(count(), read, strict=False):
            assert np.array_equal(frame[0, :16], numbered(k)[0, :16])
