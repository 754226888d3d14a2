"""The film: exact at every rate and join, whole or not there."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest
from cut_frames import (
    HEIGHT,
    NINE,
    WIDTH,
    Coded,
    Library,
    assert_shows,
    decode,
    encode_all,
    encoding,
    faded_clips,
    faded_pieces,
    quiet,
)

from svi_story import files
from svi_story.cut.encode import Encoding, encode_piece
from svi_story.cut.extras import Extras
from svi_story.cut.ffmpeg import ffmpeg_path
from svi_story.cut.join import PieceError, count_frames, join
from svi_story.cut.timeline import Span, TimelineClip, edit_list
from svi_story.errors import RenderError
from svi_story.files import temp_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NOTHING = Extras()
FRAMES = 33
"""Of the film that cut_frames.faded_clips() makes: 43 contributed, 10 lost to fades."""
RATES = [15, 16, 24, 30, "24000/1001", "30000/1001", 60, 1, 240, "2997/125"]
RATES += ["999983/41666", "1000000/999999", "999983/4167"]  # as fine as a board may be


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return encode_all(faded_pieces(), encoding(), tmp_path_factory.mktemp("pieces"))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return tmp_path / "film.mp4"


@pytest.mark.parametrize("rate", RATES)
def test_a_film_is_exact_at_any_rate(tmp_path: Path, film: Path, rate: int | str) -> None:
    fps = Fraction(rate)
    edit = faded_pieces()
    frames = join(encode_all(edit, encoding(fps), tmp_path), encoding(fps), film, NOTHING)
    assert frames == sum(clip.frames - clip.fade for clip in faded_clips()) == FRAMES
    assert_shows(film, edit, fps)
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        assert stream.frames == frames
        assert stream.average_rate == stream.guessed_rate == fps
        assert stream.start_time == 0
        assert stream.duration is not None
        assert stream.time_base is not None
        assert stream.duration * stream.time_base == frames / fps
        assert container.duration == pytest.approx(float(frames / fps) * av.time_base, abs=1)
        assert (stream.width, stream.height, stream.pix_fmt) == (WIDTH, HEIGHT, "yuv420p")
        assert (stream.colorspace, stream.color_primaries, stream.color_trc, stream.color_range) == (
            1,
            1,
            1,
            1,
        )


@pytest.mark.slow
def test_two_hundred_pieces(tmp_path: Path, film: Path) -> None:
    """Every length from one frame on, every fade that fits, in no order."""
    chance = random.Random(2)
    clips: list[TimelineClip] = []
    for number in range(150):
        spans = tuple(
            Span(str(number), first, first + 1 + chance.randrange(3)) for first in range(1 + number % 2)
        )
        room = clips[-1].frames - clips[-1].fade if clips else 0
        frames = sum(span.frames for span in spans)
        clips.append(TimelineClip(str(number), spans, chance.randint(0, min(room, frames))))
    edit = edit_list(clips)
    assert len(edit) >= 200
    assert sum(piece.frames == 1 for piece in edit) > 50
    fps = Fraction(24000, 1001)
    assert join(encode_all(edit, encoding(fps), tmp_path), encoding(fps), film, NOTHING) == sum(
        p.frames for p in edit
    )
    assert_shows(film, edit, fps)


def test_other_readers_find_no_fault(pieces: list[Path], film: Path) -> None:
    single = [path for path, piece in zip(pieces, faded_pieces(), strict=True) if piece.frames == 1]
    join([*pieces, *single * 3, *pieces], encoding(), film, NOTHING)
    command = [ffmpeg_path(), "-v", "warning", "-xerror", "-i", str(film), "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert done.stderr == ""
    assert [int(line.split(",")[2]) for line in lines] == list(range(2 * FRAMES + 3))


def test_one_piece_makes_a_film(pieces: list[Path], film: Path) -> None:
    single = next(path for path, piece in zip(pieces, faded_pieces(), strict=True) if piece.frames == 1)
    assert join([single], encoding(), film, NOTHING) == 1
    assert count_frames(film) == 1


def test_metadata_survives(pieces: list[Path], film: Path) -> None:
    comment = json.dumps({"board": "0" * 64, "tool": "svi-story 0.1", "text": "猫 \"\\ '\n;=#[x]" * 2000})
    join(
        pieces,
        encoding(),
        film,
        Extras({"title": "Your cat: still; your = cat\n猫", "comment": comment, "artist": ""}),
    )
    with av.open(str(film)) as container:
        assert container.metadata["title"] == "Your cat: still; your = cat\n猫"
        assert container.metadata["comment"] == comment
        assert "artist" not in container.metadata


def test_text_that_no_file_can_hold_does_not_stop_a_film(pieces: list[Path], film: Path) -> None:
    join(pieces, encoding(), film, Extras({"title": "a\0b\ud800c"}))
    with av.open(str(film)) as container:
        assert container.metadata["title"] == "ab?c"


def test_same_pieces_same_bytes_and_the_index_comes_first(pieces: list[Path], tmp_path: Path) -> None:
    films = [tmp_path / "one.mp4", tmp_path / "two.mp4"]
    for path in films:
        join(pieces, encoding(), path, Extras({"title": "cat"}))
    content = films[0].read_bytes()
    assert content == films[1].read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    "name", ["a:b%03d.mp4", "-y.mp4", "x y'\"\n.mp4", "ü猫.mp4", "no-extension", "n" * 250]
)
def test_any_name_is_a_name(
    pieces: list[Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(pieces[0], "concat:piece")
    assert join([Path("concat:piece")], encoding(), Path(name), NOTHING) > 0
    assert {path.name for path in tmp_path.iterdir()} == {name, "concat:piece"}


# --- what may go wrong ---


def test_no_pieces_make_no_film(film: Path) -> None:
    with pytest.raises(ValueError, match="needs a piece"):
        join([], encoding(), film, NOTHING)
    assert not film.exists()


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    return tmp_path / "odd-piece.mp4"


def refused(pieces: list[Path], odd: Path, film: Path, message: str) -> None:
    film.write_text("the film of yesterday")
    for order in ([*pieces, odd], [odd, *pieces]):
        with pytest.raises(PieceError, match=message) as error:
            join(order, encoding(), film, NOTHING)
        assert error.value.piece in {odd, order[1]}
        assert film.read_text() == "the film of yesterday"
        assert not list(film.parent.glob(".*"))


class Turned(Coded):
    """An entry in portrait."""

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return super().__getitem__(index).swapaxes(0, 1)


def test_a_piece_of_another_size_is_refused(pieces: list[Path], odd: Path, film: Path) -> None:
    how = Encoding(HEIGHT, WIDTH, Fraction(15), 18)
    encode_piece(NINE, lambda key: Turned(key, 100), how, odd, quiet)
    refused(pieces, odd, film, "not encoded like the rest")


def test_a_piece_of_another_rate_is_refused(pieces: list[Path], odd: Path, film: Path) -> None:
    encode_piece(NINE, Library(), encoding(16), odd, quiet)
    refused(pieces, odd, film, "not encoded like the rest|not encoded at 15 frames a second")


def test_a_piece_with_other_headers_is_refused(pieces: list[Path], odd: Path, film: Path) -> None:
    other = ("-preset", "ultrafast", "-video_track_timescale", "15360", "-c:v", "libx264")
    subprocess.run([ffmpeg_path(), "-v", "error", "-i", pieces[0], *other, odd], check=True)
    refused(pieces, odd, film, "not encoded like the rest")


@pytest.mark.parametrize("content", [b"", b"rubbish" * 99, None], ids=["empty", "rubbish", "missing"])
def test_a_piece_that_is_no_video_is_refused(
    pieces: list[Path], odd: Path, film: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        odd.write_bytes(content)
    refused(pieces, odd, film, "cannot be read")
    assert capfd.readouterr() == ("", "")


def test_a_truncated_piece_is_refused(pieces: list[Path], odd: Path, film: Path) -> None:
    whole_film = film.with_name("whole.mp4")
    join(pieces, encoding(), whole_film, NOTHING)
    content = whole_film.read_bytes()  # its index comes first, so that a part of it still opens
    for left in (*range(content.index(b"mdat") + 8, len(content), 97), len(content) - 1):
        odd.write_bytes(content[:left])
        assert count_frames(odd) < FRAMES
        with pytest.raises(PieceError):
            join([odd], encoding(), film, NOTHING)
    assert not film.exists()


@pytest.mark.parametrize("left", [0, 10, 3000])
def test_a_full_disk_leaves_yesterdays_film(pieces: list[Path], film: Path, left: int) -> None:
    film.write_text("the film of yesterday")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, hard))  # Python ignores the signal: writing fails
    try:
        with pytest.raises(RenderError, match="cannot be written: File too large"):
            join(pieces, encoding(), film, NOTHING)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert film.read_text() == "the film of yesterday"
    assert [path.name for path in film.parent.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_the_last_moment(
    pieces: list[Path], film: Path, call: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(call, fail)
    with pytest.raises(RenderError if isinstance(error, OSError) else KeyboardInterrupt):
        join(pieces, encoding(), film, NOTHING)
    assert not list(film.parent.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from cut_frames import encoding
from svi_story.cut import join as room
from svi_story.cut.extras import Extras

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

{patch}
room.join([Path(path) for path in {pieces!r}], encoding(), Path({film!r}), Extras())
"""


@pytest.mark.parametrize("patch", ["room.count_frames = die", "os.fsync = die", "Path.replace = die"])
def test_a_kill_leaves_yesterdays_film_and_the_next_join_tidies_up(
    pieces: list[Path], film: Path, patch: str
) -> None:
    film.write_text("the film of yesterday")
    paths = [str(path) for path in pieces]
    code = KILLED.format(tests=str(Path(__file__).parent), patch=patch, pieces=paths, film=str(film))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert film.read_text() == "the film of yesterday"
    assert len(list(film.parent.glob(".tmp-*-film.mp4"))) == 1
    join(pieces, encoding(), film, NOTHING)
    assert [path.name for path in film.parent.iterdir()] == ["film.mp4"]


def test_sweeping_spares_the_living_the_locked_and_strangers(tmp_path: Path) -> None:
    host = temp_name().split("-")[1]
    dead = subprocess.Popen(["true"])
    dead.wait()
    spared = [
        f".tmp-{host}-{os.getpid()}-0123abcd-film.mp4",
        f".tmp-elsewhere-{dead.pid}-0123abcd-film.mp4",
        f".tmp-{host}-{dead.pid}-film.mp4",
        f".tmp-{host}-{10**30}-0123abcd-film.mp4",
        "film.mp4",
    ]
    for name in [*spared, f".tmp-{host}-{dead.pid}-0123abcd-film.mp4"]:
        (tmp_path / name).touch()
    (tmp_path / f".tmp-{host}-{dead.pid}-ffffffff-link").symlink_to("film.mp4")
    with files.atomic_file(tmp_path / "new.mp4") as temporary:
        in_a_container = temporary.with_name(temporary.name.replace(str(os.getpid()), str(dead.pid)))
        temporary.rename(in_a_container)
        files.remove_stale_temps(tmp_path)
        assert in_a_container.exists()
        in_a_container.rename(temporary)
    left = {path.name for path in tmp_path.iterdir() if not path.is_symlink()}
    assert left == {*spared, "new.mp4"}
    files.remove_stale_temps(tmp_path / "missing")


MANY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from cut_frames import encoding
from svi_story.cut.extras import Extras
from svi_story.cut.join import join
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
pieces = [Path(path) for path in {pieces!r}]
frames = join(pieces * {times}, encoding(), Path({film!r}), Extras())
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_thousand_pieces_take_no_more_memory_or_files_than_fifty(pieces: list[Path], film: Path) -> None:
    def run(times: int) -> list[int]:
        paths = [str(path) for path in (pieces * 5)[:50]]
        code = MANY.format(tests=str(Path(__file__).parent), pieces=paths, times=times, film=str(film))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    (few, little), (many, much) = run(1), run(20)
    assert many == 20 * few
    assert much < 1.1 * little
    assert count_frames(film) == many
    assert [frame.seconds for frame in decode(film)] == [Fraction(number, 15) for number in range(many)]
