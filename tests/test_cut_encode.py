"""Pieces: exact, the right colours, the same bytes each time, and nothing left behind when it goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from cut_frames import HEIGHT, NINE, WIDTH, Coded, Library, assert_shows, encoding, faded_pieces, quiet

from svi_story.cut.encode import CODECS, Encoding, encode_piece, piece_inputs
from svi_story.cut.ffmpeg import encoder_versions, ffmpeg_path, import_moviepy
from svi_story.cut.frames import blend
from svi_story.cut.join import count_frames
from svi_story.cut.timeline import Piece, Span
from svi_story.errors import RenderError
from svi_story.media import guard
from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    guard.stop()  # another test's
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_piece_shows_its_span(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    encode_piece(NINE, Library(), encoding(), tmp_path / "p.mp4", lambda *step: steps.append(step))
    assert_shows(tmp_path / "p.mp4", [NINE], Fraction(15))
    assert steps == [(done, 9) for done in range(1, 10)]
    assert [path.name for path in tmp_path.iterdir()] == ["p.mp4"]


def test_the_next_piece_may_begin_when_all_frames_are_read(tmp_path: Path) -> None:
    target = tmp_path / "p.mp4"
    steps: list[str] = []

    @contextmanager
    def turn() -> Iterator[None]:
        steps.append("begin")
        yield
        steps.append(f"end, published: {target.exists()}")

    encode_piece(NINE, Library(), encoding(), target, lambda done, _: steps.append(f"{done}"), turn())
    assert steps == ["begin", *map(str, range(1, 10)), "end, published: False"]


@pytest.mark.parametrize(
    "name", ["a:b%03d.mp4", "-y.mp4", "x y'\"\n.mp4", "ü猫.mp4", "no-extension", "n" * 250]
)
def test_any_name_is_a_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encode_piece(NINE, Library(), encoding(), Path(name), quiet)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert count_frames(Path(name)) == 9


def test_a_long_piece_does_not_drift(tmp_path: Path) -> None:
    """23.98 instead of 24000/1001 moves frames after 3,000; floats lose one of 27 already."""
    fps = Fraction(24000, 1001)
    frames = next(count for count in range(3_200, 4_000) if int(count / float(fps) * float(fps)) < count)
    piece = Piece((Span("1", 0, frames),))
    encode_piece(piece, Library(frames), encoding(fps), tmp_path / "p.mp4", quiet)
    assert_shows(tmp_path / "p.mp4", [piece], fps)


def test_entries_are_opened_once_and_closed_two_at_most(tmp_path: Path) -> None:
    fade = Piece((Span("1", 0, 3), Span("2", 1, 4)), (Span("3", 9, 11), Span("4", 1, 4), Span("1", 1, 2)))
    library = Library()
    encode_piece(fade, library, encoding(), tmp_path / "p.mp4", quiet)
    assert_shows(tmp_path / "p.mp4", [fade], Fraction(15))
    assert [entry.key for entry in library.opened] == ["1", "3", "4", "2", "1"]
    assert [entry.closed for entry in library.opened] == [1] * 5
    assert library.most_open == 2


def test_same_input_same_bytes(tmp_path: Path) -> None:
    fade = faded_pieces()[3]
    for name in ("a", "b"):
        encode_piece(fade, Library(), encoding(), tmp_path / name, quiet)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_inputs_of_a_piece_tell_it_from_every_other() -> None:
    pieces = [
        NINE,
        Piece((Span("7", 3, 11),)),
        Piece((Span("7", 2, 12),)),
        Piece((Span("8", 3, 12),)),
        Piece((Span("7", 3, 12),), (Span("7", 0, 9),)),
        Piece((Span("7", 3, 4), Span("7", 4, 12)), (Span("7", 0, 9),)),
    ]
    encodings = [
        encoding(),
        encoding(Fraction(24000, 1001)),
        encoding(crf=19),
        Encoding(128, 128, Fraction(15), 18),
    ]
    keys = [key_of(piece_inputs(piece, encoding())) for piece in pieces]
    keys += [key_of(piece_inputs(NINE, how)) for how in encodings[1:]]
    assert len(set(keys)) == len(keys)
    assert key_of(piece_inputs(Piece(NINE.spans, clip="renamed"), encoding())) == keys[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PIECE_VERSION", 99),
        ("CODECS", {"h264": replace(CODECS["h264"], encoder="libx265")}),
        ("THREADS", 2),
        ("Encoding.options", ("-an",)),
        ("encoder_versions", lambda: ("ffmpeg version 99", "2.2.1")),
        ("encoder_versions", lambda: (encoder_versions()[0], "99")),
    ],
)
def test_another_encoder_makes_other_pieces(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(piece_inputs(NINE, encoding()))
    monkeypatch.setattr(f"svi_story.cut.encode.{name}", value)
    assert key_of(piece_inputs(NINE, encoding())) != before


class Flat:
    """An entry of one colour."""

    def __init__(self, colour: tuple[int, int, int]) -> None:
        self.picture = np.full((HEIGHT, WIDTH, 3), colour, np.uint8)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.picture

    def close(self) -> None:
        """Nothing is open."""


def bt709(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    """Y, Cb, Cr of an RGB colour in limited range, by the letter of BT.709."""
    red, green, blue = (part / 255 for part in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748


@pytest.mark.parametrize(
    "colour",
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40), (90, 160, 210)],
)
def test_colours_are_bt709_and_say_so(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    path = tmp_path / "p.mp4"
    encode_piece(Piece((Span("flat", 0, 2),)), lambda key: Flat(colour), encoding(crf=1), path, quiet)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        frame = next(container.decode(video=0))
    assert context.pix_fmt == "yuv420p"
    assert tags == (1, 1, 1, 1)  # bt709 three times, limited range
    means = [np.frombuffer(bytes(plane), np.uint8).mean() for plane in frame.planes]
    assert np.abs(np.array(means) - bt709(colour)).max() < 1.5


@pytest.mark.parametrize("whole", [2, 3, 8, 256, 257, 100_000])
def test_blending_rounds_to_nearest_and_overflows_nowhere(whole: int) -> None:
    under, over = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for part in {1, whole // 2, whole - 1}:
        exact = under * (1 - part / whole) + over * (part / whole)
        assert np.abs(blend(under, over, part, whole) - exact).max() <= 0.5 + 1e-9


def test_a_blend_rounds_halves_up() -> None:
    dark, light = np.array([0, 10, 254], np.uint8), np.array([1, 11, 255], np.uint8)
    assert blend(dark, light, 1, 2).tolist() == [1, 11, 255]


@pytest.mark.parametrize("fps", [Fraction(23_976_023, 1_000_000), Fraction(1_001_001, 1_001_002)])
def test_a_rate_finer_than_ffmpeg_holds_is_refused(fps: Fraction) -> None:
    with pytest.raises(ValueError, match="finer"):
        encoding(fps)


def test_memory_does_not_grow_with_the_piece(tmp_path: Path) -> None:
    def peak(frames: int) -> int:
        tracemalloc.start()
        encode_piece(Piece((Span("1", 0, frames),)), Library(frames), encoding(), tmp_path / "p.mp4", quiet)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)  # imports
    short, long = peak(20), peak(500)
    assert long < short + 20_000, "a frame has 24,576 bytes"


# --- what may go wrong ---


class Stop(BaseException):
    """As a ^C would be: no Exception."""


@pytest.mark.parametrize("when", [1, 5, 9])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Stop, ValueError, StopIteration, OSError])
def test_an_exception_from_the_progress_leaves_nothing(
    tmp_path: Path, when: int, kind: type[BaseException]
) -> None:
    def on_frame(done: int, frames: int) -> None:
        if done == when:
            raise kind

    library = Library()
    with pytest.raises(kind):
        encode_piece(NINE, library, encoding(), tmp_path / "p.mp4", on_frame)
    assert not list(tmp_path.iterdir())
    assert [entry.closed for entry in library.opened] == [1]


class Failing(Coded):
    """An entry that cannot read its frame 7."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("1", 100)
        self.error = error

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if index == 7:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(5, "Input/output error"), OSError),
        (RenderError("corrupt"), RenderError),
        (StopIteration(), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_an_exception_from_reading_leaves_nothing(
    tmp_path: Path, error: BaseException, seen: type[BaseException]
) -> None:
    entry = Failing(error)
    with pytest.raises(seen):
        encode_piece(NINE, lambda key: entry, encoding(), tmp_path / "p.mp4", quiet)
    assert not list(tmp_path.iterdir())
    assert entry.closed == 1


def test_an_entry_that_is_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="entry 7 holds 11 frames, but the film needs its frame 11"):
        encode_piece(NINE, Library(11), encoding(), tmp_path / "p.mp4", quiet)
    assert not list(tmp_path.iterdir())


def test_frames_of_another_size_never_reach_ffmpeg(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a frame of 64x128 was due"):
        encode_piece(NINE, Library(), Encoding(64, 128, Fraction(15), 18), tmp_path / "p.mp4", quiet)


def test_what_was_there_before_stays_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "p.mp4").write_text("the piece of yesterday")
    with pytest.raises(RenderError):
        encode_piece(NINE, Library(5), encoding(), tmp_path / "p.mp4", quiet)
    assert (tmp_path / "p.mp4").read_text() == "the piece of yesterday"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'No space left on device' >&2; exit 1",
            r"status 1 \(No space left on device\); free some space",
        ),
        ("cat >/dev/null; echo 'Unknown encoder' >&2; exit 187", r"status 187 \(Unknown encoder\)"),
        ("head -c 30000 >/dev/null; kill -9 $$", "status -9"),
        ("cat >/dev/null", "0 of its 9 frames arrived"),
        ("head -c 30000 >/dev/null; exit 0", "0 of its 9 frames arrived"),
        ('cat >/dev/null; for file; do :; done; echo rubbish > "$file"', "0 of its 9 frames arrived"),
        ('head -c 122880 | "$0.real" "$@"; cat >/dev/null', "5 of its 9 frames arrived"),
    ],
)
def test_ffmpeg_fails(
    tmp_path: Path,
    script: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake, folder = tmp_path / "ffmpeg", tmp_path / "pieces"
    folder.mkdir()
    (tmp_path / "ffmpeg.real").symlink_to(ffmpeg_path())
    import_moviepy()
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr("svi_story.cut.encode.ffmpeg_path", lambda: str(fake))
    with pytest.raises(RenderError, match=message) as failed:
        encode_piece(NINE, Library(), encoding(), folder / "p.mp4", quiet)
    assert str(failed.value).startswith(str(folder / "p.mp4"))
    assert not list(folder.iterdir())
    assert capfd.readouterr() == ("", "")


def test_an_ffmpeg_that_hangs_does_not_hold_up_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\ncat >/dev/null\nexec sleep 600\n")
    fake.chmod(0o755)
    import_moviepy()
    monkeypatch.setattr("svi_story.cut.encode.ffmpeg_path", lambda: str(fake))

    def on_frame(done: int, frames: int) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        encode_piece(NINE, Library(), encoding(), tmp_path / "p.mp4", on_frame)
    assert time.monotonic() - start < 120


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="No such file or directory; create that folder"):
        encode_piece(NINE, Library(), encoding(), tmp_path / "missing" / "p.mp4", quiet)


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from cut_frames import Library, encoding
from svi_story.cut.encode import encode_piece
from svi_story.cut.timeline import Piece, Span

def on_frame(done, frames):
    if done == 5:
        (child,) = Path("/proc/self/task/%d/children" % __import__("os").getpid()).read_text().split()
        print(child, flush=True)
    if done >= 5:
        time.sleep(0.05)

encode_piece(Piece((Span("1", 0, 900),)), Library(900), encoding(), Path({target!r}), on_frame)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
def test_a_signal_leaves_no_ffmpeg_and_no_piece(tmp_path: Path, sent: signal.Signals, to_group: bool) -> None:
    code = SLOW.format(tests=str(Path(__file__).parent), target=str(tmp_path / "p.mp4"))
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as python:
        assert python.stdout is not None
        ffmpeg = int(python.stdout.readline())
        (os.killpg if to_group else os.kill)(python.pid, sent)
        _, errors = python.communicate(timeout=120)
    assert python.returncode == -sent
    assert ("KeyboardInterrupt" in errors) == (sent == signal.SIGINT)
    deadline = time.monotonic() + 60
    while is_alive(ffmpeg) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(ffmpeg)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == [] if sent == signal.SIGINT else all(name.startswith(".tmp-") for name in left)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


DOTENV = """
import os, sys
import dotenv
dotenv.find_dotenv = lambda *args, **more: {env!r}
before = dict(os.environ)
from svi_story.cut.ffmpeg import ffmpeg_path, import_moviepy
import_moviepy()
import moviepy.config
assert moviepy.config.FFMPEG_BINARY == ffmpeg_path(), moviepy.config.FFMPEG_BINARY
assert dict(os.environ) == before, set(os.environ) ^ set(before)
"""


@pytest.mark.parametrize("ending", [b"", b"\xff\xfe"], ids=["good", "broken"])
def test_a_stray_dotenv_changes_nothing(tmp_path: Path, ending: bytes) -> None:
    program, env = tmp_path / "program", tmp_path / ".env"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    names = ("FFMPEG_BINARY", "FFPLAY_BINARY", "IMAGEIO_FFMPEG_EXE", "SOMETHING_ELSE")
    env.write_bytes("".join(f"{name}={program}\n" for name in names).encode() + ending)
    clean = {name: value for name, value in os.environ.items() if name not in names}
    subprocess.run([sys.executable, "-c", DOTENV.format(env=str(env))], env=clean, check=True)
    assert not (tmp_path / "ran").exists()


def test_an_ffmpeg_that_does_not_run_is_named(tmp_path: Path) -> None:
    code = (
        "from svi_story.cut.ffmpeg import import_moviepy\n"
        "try: import_moviepy()\nexcept Exception as error: print(repr(error))"
    )
    environment = os.environ | {"IMAGEIO_FFMPEG_EXE": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("RenderError")
    assert "set IMAGEIO_FFMPEG_EXE" in done.stdout
