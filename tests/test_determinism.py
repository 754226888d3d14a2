"""The same board makes the same bytes, whatever memory held, and whatever the environment says.

benchmarks/determinism.py renders a hundred times.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from cut_frames import NINE, Library, encoding, quiet
from PIL import Image
from render_conditions import (
    PERTURBED,
    Condition,
    compile_filler,
    filled,
    forced,
    render,
    varied,
    write_boards,
)

from svi_story.cut import ffmpeg
from svi_story.cut.encode import Encoding, encode_piece
from svi_story.cut.ffmpeg import ENVIRONMENT, ffmpeg_path, portable_options
from svi_story.cut.timeline import Piece, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

PLAIN = Condition("as it is")
BYTES = (0, 170)
FRAMES = 12


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = compile_filler(tmp_path_factory.mktemp("filler"))
    if library is None:
        pytest.skip("no C compiler for glibc: tested with MALLOC_PERTURB_ only")
    return library


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A board of 832x480 and the sha256 of its film."""
    folder = tmp_path_factory.mktemp("wide")
    board = write_boards(folder / "storyboards", "832x480")[-1]
    return board, render([board], folder / "plain", PLAIN)[board.stem]


@pytest.mark.parametrize(
    "condition",
    [PERTURBED[0], *(pytest.param(each, marks=pytest.mark.slow) for each in PERTURBED[1:])],
    ids=lambda condition: condition.name,
)
def test_a_film_does_not_depend_on_what_glibc_leaves_in_memory(
    tmp_path: Path, wide: tuple[Path, str], condition: Condition
) -> None:
    board, plain = wide
    assert render([board], tmp_path / "out", condition) == {board.stem: plain}


def test_a_film_does_not_depend_on_what_an_allocator_leaves_in_memory(
    tmp_path: Path, wide: tuple[Path, str], filler: Path
) -> None:
    board, plain = wide
    assert render([board], tmp_path / "out", filled(filler, 0xAA)) == {board.stem: plain}


def test_renders_under_all_sorts_of_conditions_make_the_same_films(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    boards = write_boards(tmp_path / "storyboards")
    library = compile_filler(tmp_path_factory.mktemp("filler"))
    first, second = (render(boards, tmp_path / str(number), varied(number, library)) for number in (1, 2))
    assert first == second


# --- encoders by themselves ---


class Moving:
    """An entry in which a picture with detail everywhere moves past: rate control has much to decide."""

    def __init__(self, width: int, height: int) -> None:
        noise = np.random.default_rng(1).integers(
            0, 255, (height // 8 + 8, width // 8 + 12, 3), dtype=np.uint8
        )
        large = (noise.shape[1] * 8, noise.shape[0] * 8)
        self.picture = np.asarray(Image.fromarray(noise).resize(large, Image.Resampling.BICUBIC))
        self.width, self.height = width, height

    def __len__(self) -> int:
        return FRAMES

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        x, y = 3 * index, 2 * index
        return np.ascontiguousarray(self.picture[y : y + self.height, x : x + self.width])

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Encodes a piece where fresh memory holds something; `portable` without the options that we add."""

    def encode(
        size: tuple[int, int],
        memory: dict[str, str],
        codec: Literal["h264", "av1"] = "h264",
        *,
        portable: bool = True,
    ) -> str:
        how = Encoding(
            *size, Fraction(15), 18 if codec == "h264" else 35, codec, "medium" if codec == "h264" else "10"
        )
        with monkeypatch.context() as patched:
            program = forced(tmp_path / "ffmpeg", memory)
            patched.setattr("svi_story.cut.encode.ffmpeg_path", lambda: str(program))
            if not portable:
                patched.setattr("svi_story.cut.encode.portable_options", lambda encoder: ())
            piece = Piece((Span("moving", 0, FRAMES),))
            encode_piece(piece, lambda key: Moving(*size), how, tmp_path / "p.mp4", quiet)
        return hashlib.sha256((tmp_path / "p.mp4").read_bytes()).hexdigest()

    return encode


def memories(filler: Path | None = None) -> Iterator[dict[str, str]]:
    yield {}
    for condition in PERTURBED:
        yield dict(condition.memory)
    if filler:
        for byte in BYTES:
            yield dict(filled(filler, byte).memory)


@pytest.mark.parametrize("codec", ["h264", "av1"])
@pytest.mark.parametrize(
    "size",
    [(832, 480), *(pytest.param(size, marks=pytest.mark.slow) for size in ((208, 112), (304, 176)))],
    ids=str,
)
def test_a_piece_does_not_depend_on_what_memory_held(
    encoded: Callable[..., str], size: tuple[int, int], codec: str, filler: Path
) -> None:
    assert len({encoded(size, memory, codec) for memory in memories(filler)}) == 1


def test_these_tests_would_notice(encoded: Callable[..., str]) -> None:
    """Without our option the bytes depend on memory; else all of the above proves nothing about x264."""
    if not any(name.startswith("AVX512") for name in ffmpeg._instructions()):
        pytest.skip("this CPU has no AVX-512, so x264's fault cannot be seen here")
    made = {encoded((832, 480), memory, portable=False) for memory in memories()}
    if len(made) == 1:
        pytest.skip("this ffmpeg's x264 does not have the fault, or MALLOC_PERTURB_ does nothing here")
    assert encoded((832, 480), {}) == encoded((832, 480), dict(PERTURBED[0].memory))


def test_where_x264_makes_no_mistake_our_option_changes_nothing(
    encoded: Callable[..., str], filler: Path
) -> None:
    """Rows of 16 macroblocks, and no memory that was not written: pieces made before are made like that."""
    zero = dict(filled(filler, 0).memory)
    for size in ((256, 128), (512, 256)):
        assert encoded(size, zero, portable=False) == encoded(size, {})


IN_PROCESS = """
import hashlib, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from PIL import Image
from svi_story.cache.frames import write_frames
from svi_story.export.media import CODECS, write_media
from svi_story.cut.audio import _encode, limit
folder = Path(sys.argv[1])
dice = np.random.default_rng(0)
def told(path):
    print(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
for width, height in ((400, 240), (304, 176)):
    noise = Image.fromarray(dice.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8))
    boxes = [(0, 0, 30 - n, 20 - n) for n in range(3)]
    frames = [np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC, box)) for box in boxes]
    for name, codec in CODECS.items():
        write_media(folder / f"{width}.{name}", frames, codec, Fraction(15), {})
        told(folder / f"{width}.{name}")
    write_frames(folder / f"{width}.magicyuv", iter(frames), Fraction(15))
    told(folder / f"{width}.magicyuv")
sound = np.sin(np.arange(100_000)[:, None] * [0.03, 0.05]) + dice.normal(0, 0.3, (100_000, 2))
loud = list(limit([sound[:48_000], sound[48_000:]]))
print("alimiter", hashlib.sha256(np.concatenate(loud).tobytes()).hexdigest())
_encode(loud, folder / "aac.m4a", lambda done: None)
told(folder / "aac.m4a")
"""


def test_prores_dnxhr_aac_and_frames_do_not_depend_on_what_memory_held(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """PyAV encodes in our process, and its threads' timing is a matter of chance: hence twice as it is."""
    library = compile_filler(tmp_path_factory.mktemp("filler"))
    made = set()
    memory = [{}, {}, dict(PERTURBED[1].memory), *([dict(filled(library, 170).memory)] if library else [])]
    for number, variables in enumerate(memory):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, "-c", IN_PROCESS, str(folder)]
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, check=True
        )
        made.add(done.stdout)
    assert len(made) == 1
    assert made.pop().count("\n") == 8


# --- how ffmpeg is started ---


def test_ffmpeg_gets_an_environment_that_we_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, program = tmp_path / "heard", tmp_path / "ffmpeg"
    program.write_text(f'#!/bin/sh\nenv -0 >> "{heard}"\nexec "{ffmpeg_path()}" "$@"\n')
    program.chmod(0o755)
    for name in ("MALLOC_PERTURB_", "GLIBC_TUNABLES", "LD_PRELOAD", "SVT_LOG", "AV_LOG_FORCE_COLOR", "TZ"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("FFREPORT", f"file={tmp_path / 'report'}")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr("svi_story.cut.encode.ffmpeg_path", lambda: str(program))
    monkeypatch.setattr("svi_story.cut.ffmpeg.ffmpeg_path", lambda: str(program))
    ffmpeg.encoder_versions.__wrapped__()
    portable_options.__wrapped__("libx264")
    encode_piece(NINE, Library(), encoding(), tmp_path / "p.mp4", quiet)
    told = dict(line.split("=", 1) for line in heard.read_text().split("\0") if line)
    assert set(told) <= {*ENVIRONMENT, "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"}
    assert (told["LC_ALL"], told["LD_LIBRARY_PATH"]) == ("C", str(tmp_path))
    assert not (tmp_path / "report").exists()


X86 = "MMX2 SSE2Fast SSSE3 SSE4.2"


@pytest.mark.parametrize(
    ("found", "used", "chosen"),
    [
        (f"{X86} AVX FMA3 BMI2 AVX2 AVX512", X86, True),
        (X86, X86, True),
        ("MMX2 SSE2Fast SSSE3 Cache64", None, False),
        ("ARMv8 NEON DotProd I8MM SVE", None, False),
        ("none!", None, False),
        ("", None, False),
        (f"{X86} AVX", "none!", False),
        (f"{X86} AVX", f"{X86} AVX", False),
        (f"{X86} AVX", "", False),
    ],
)
def test_x264_is_told_its_instructions_only_where_it_has_them_and_knows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, used: str | None, chosen: bool
) -> None:
    def says(words: str | None) -> str:
        if words is None:
            return "exit 1"
        return f"echo '[libx264 @ 0x1] using cpu capabilities: {words}' >&2" if words else "exit 0"

    program = tmp_path / "ffmpeg"
    program.write_text(
        f'#!/bin/sh\ncat >/dev/null\ncase "$*" in *asm=SSE4.2*) {says(used)};; *) {says(found)};; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr("svi_story.cut.ffmpeg.ffmpeg_path", lambda: str(program))
    assert portable_options.__wrapped__("libx264") == (("-x264opts", "asm=SSE4.2") if chosen else ())
    assert portable_options.__wrapped__("libsvtav1") == ()


def test_what_is_asked_of_the_cpu_is_in_no_content_address() -> None:
    assert "asm" not in json.dumps(encoding().identity())
