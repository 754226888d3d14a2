"""What a film carries beside its pictures: sound to the sample, captions and chapters to the frame, XMP."""

from __future__ import annotations

import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from av.stream import Disposition
from cut_frames import HEIGHT, NINE, WIDTH, assert_shows, encode_all, encoding, faded_pieces
from cut_tracks import RATE, clicks, heard, heard_by_libav, loudest, texts, top_boxes, xmp_of

from svi_story.cut.encode import Encoding
from svi_story.cut.extras import Chapter, Cue, Extras, ordered_cues
from svi_story.cut.ffmpeg import ffmpeg_path
from svi_story.cut.join import PieceError, count_frames, join
from svi_story.cut.mp4 import boxes
from svi_story.errors import RenderError

FRAMES = 33
FPS = Fraction(24000, 1001)
LENGTH = FRAMES * RATE // 15
"""Samples of the film at 15 frames a second."""
CUES = (Cue("Regen", 3, 9), Cue("مرحبا بالعالم", 9, 15), Cue("二行\nthe <i>second</i> & {last}", 20, 33))
CHAPTERS = (Chapter("window: A cat", 0, 10), Chapter("garden: 猫\nit runs", 10, 33))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return encode_all(faded_pieces(), encoding(), tmp_path_factory.mktemp("pieces"))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return tmp_path / "film.mp4"


def everything(audio: Path) -> Extras:
    return Extras({"title": "Fog"}, CHAPTERS, CUES, audio=audio, xmp=b"<x/>" * 100)


def test_a_film_with_everything_plays_everywhere(pieces: list[Path], tmp_path: Path, film: Path) -> None:
    extras = everything(clicks(tmp_path / "sound.m4a", LENGTH, 24_000))
    assert join(pieces, encoding(), film, extras) == FRAMES
    assert_shows(film, faded_pieces(), Fraction(15))
    command = [ffmpeg_path(), "-v", "warning", "-xerror", "-i", str(film), "-map", "0"]
    done = subprocess.run(
        [*command, "-map", "-0:d", "-c:s", "mov_text", "-f", "mp4", "-y", tmp_path / "other.mp4"],
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    kinds = [box.kind for box in top_boxes(film)]
    assert kinds == [b"ftyp", b"moov", b"free", b"mdat", b"uuid"]
    with av.open(str(film)) as container:
        assert [stream.type for stream in container.streams][:3] == ["video", "audio", "subtitle"]
        assert container.duration == 2_200_000
        lengths = {s.duration * s.time_base for s in container.streams if s.duration and s.time_base}
        assert lengths == {Fraction(FRAMES, 15)}


def test_same_extras_same_bytes(pieces: list[Path], tmp_path: Path, film: Path) -> None:
    extras = everything(clicks(tmp_path / "sound.m4a", LENGTH, 24_000))
    other = tmp_path / "other.mp4"
    for target in (film, other):
        join(pieces, encoding(), target, extras)
    assert film.read_bytes() == other.read_bytes()


# --- sound ---


@pytest.mark.parametrize("samples", [LENGTH, LENGTH - 300, LENGTH + 1, LENGTH + 5 * RATE])
def test_sound_starts_and_ends_with_the_picture(
    pieces: list[Path], tmp_path: Path, film: Path, samples: int
) -> None:
    """Both decoders hear the clicks where they were put, and nothing past the last frame."""
    audio = clicks(tmp_path / "sound.m4a", samples, 5_000, LENGTH - 900)
    join(pieces, encoding(), film, Extras(audio=audio))
    wave, other = heard(film), heard_by_libav(film)
    assert len(wave) == min(samples, LENGTH)
    assert loudest(wave[:40_000]) == loudest(other[:40_000]) == 5_000
    assert 40_000 + loudest(wave[40_000:]) == 40_000 + loudest(other[40_000:]) == LENGTH - 900
    assert np.abs(wave).max() > 0.5
    with av.open(str(film)) as container:
        sound = container.streams.audio[0]
        assert (sound.start_time, sound.duration) == (0, min(samples, LENGTH))


@pytest.mark.parametrize("fps", [FPS, Fraction(24), Fraction(1), Fraction(240), Fraction(999983, 41666)])
def test_sound_at_any_rate(tmp_path: Path, film: Path, fps: Fraction) -> None:
    made = encode_all([NINE], encoding(fps), tmp_path)
    length = int(NINE.frames * RATE / fps)
    audio = clicks(tmp_path / "sound.m4a", length + 9_000, 700)
    join(made, encoding(fps), film, Extras(audio=audio))
    wave = heard(film)
    assert len(wave) == length
    assert loudest(wave) == 700
    with av.open(str(film)) as container:
        assert container.streams.video[0].duration is not None
        assert container.duration == pytest.approx(float(NINE.frames / fps) * av.time_base, abs=2)


def test_sound_packets_longer_than_frames(tmp_path: Path, film: Path) -> None:
    """The last packet of sound lasts 936 samples; the film is not over when it begins."""
    fps = Fraction(240)
    made = encode_all([NINE], encoding(fps), tmp_path) * 21
    length = 21 * NINE.frames * 200
    join(made, encoding(fps), film, Extras(audio=clicks(tmp_path / "sound.m4a", length, length - 5)))
    assert len(heard(film)) == length
    assert loudest(heard(film)) == loudest(heard_by_libav(film)) == length - 5


def test_sound_that_is_not_a_sound_is_refused(pieces: list[Path], tmp_path: Path, film: Path) -> None:
    short, rubbish = clicks(tmp_path / "short.m4a", LENGTH // 2, 10), tmp_path / "rubbish.m4a"
    rubbish.write_bytes(b"rubbish" * 99)
    cut = tmp_path / "cut.m4a"
    cut.write_bytes(short.read_bytes()[:-200])
    for path, message in [
        (short, "ends before"),
        (rubbish, "cannot be read"),
        (tmp_path / "missing", "cannot be read"),
        (cut, "cannot be read"),
        (pieces[0], "holds no sound"),
    ]:
        with pytest.raises(PieceError, match=message) as error:
            join(pieces, encoding(), film, Extras(audio=path))
        assert error.value.piece == path
    assert not film.exists()
    assert not list(tmp_path.glob(".*"))


# --- captions ---


def test_captions_are_a_track_of_their_own(pieces: list[Path], film: Path) -> None:
    join(pieces, encoding(), film, Extras(captions=CUES))
    at = [Fraction(frame, 15) for frame in (0, 3, 9, 15, 20, 33)]
    assert texts(film) == [
        (at[0], at[1], ""),
        (at[1], at[2], CUES[0].text),
        (at[2], at[3], CUES[1].text),
        (at[3], at[4], ""),
        (at[4], at[5], CUES[2].text),
    ]
    with av.open(str(film)) as container:
        track = container.streams.subtitles[0]
        assert track.codec_context.name == "mov_text"
        assert track.metadata["language"] == "und"
        assert track.codec_context.extradata  # players need the style that is in it


def test_other_readers_show_the_captions(pieces: list[Path], film: Path) -> None:
    join(pieces, encoding(), film, Extras(captions=CUES[:2]))
    done = subprocess.run(
        [ffmpeg_path(), "-v", "error", "-i", film, "-map", "0:s", "-f", "webvtt", "-"],
        capture_output=True,
        check=True,
    )
    told = done.stdout.decode()
    assert "00:00.200 --> 00:00.600\nRegen" in told
    assert "00:00.600 --> 00:01.000\nمرحبا بالعالم" in told


@pytest.mark.parametrize("fps", [FPS, Fraction(15), Fraction(240), Fraction(999983, 41666)])
@pytest.mark.parametrize("name", ["h264", "av1"])
def test_captions_beside_sound_at_any_rate(
    tmp_path: Path, film: Path, fps: Fraction, name: Literal["h264", "av1"]
) -> None:
    """To the frame, with not one sample more than needed, whatever the other tracks' clocks are."""
    how = Encoding(WIDTH, HEIGHT, fps, 30, name, "ultrafast" if name == "h264" else "13")
    made = encode_all([NINE], how, tmp_path)
    audio = clicks(tmp_path / "sound.m4a", int(NINE.frames * RATE / fps), 9)
    cues = Cue("one", 1, 3), Cue("two", 3, 5), Cue("three", 7, 9)
    join(made, how, film, Extras(captions=cues, audio=audio))
    at = [(0, 1, ""), (1, 3, "one"), (3, 5, "two"), (5, 7, ""), (7, 9, "three")]
    assert texts(film) == [(start / fps, stop / fps, text) for start, stop, text in at]


@pytest.mark.parametrize("shown", [True, False])
def test_captions_that_are_in_the_picture_wait_to_be_asked_for(
    pieces: list[Path], film: Path, shown: bool
) -> None:
    join(pieces, encoding(), film, Extras(captions=CUES, chapters=CHAPTERS, captions_on=shown))
    with av.open(str(film)) as container:
        assert (Disposition.default in container.streams.subtitles[0].disposition) is shown
        assert Disposition.default in container.streams.video[0].disposition
        assert len(container.chapters()) == 2
    assert count_frames(film) == FRAMES


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\r\nb\rc\x00\x1b[1m", "a\nb\nc[1m"), ("  x\n", "x"), ("\ud800", "?"), ("猫" * 30_000, "猫" * 21_845)],
)
def test_any_text_is_a_caption(pieces: list[Path], film: Path, text: str, shown: str) -> None:
    join(pieces, encoding(), film, Extras(captions=(Cue(text, 0, 5),)))
    assert texts(film) == [(Fraction(0), Fraction(1, 3), shown)]


def test_cues_come_in_turn() -> None:
    cues = [Cue("late", 9, 12), Cue("long", 0, 30), Cue(" \n", 3, 4), Cue("twin", 9, 20)]
    assert ordered_cues(cues) == [Cue("long", 0, 9), Cue("twin", 9, 20)]
    with pytest.raises(ValueError, match="start < stop"):
        Cue("x", 5, 5)


# --- chapters ---


def short_list(film: Path) -> list[bytes]:
    """The titles in the list of chapters that counts in bytes."""
    content = film.read_bytes()
    at = content.index(b"chpl") + 4 + 9  # version, flags, a reserved word, the count
    titles: list[bytes] = []
    for _ in range(content[at - 1]):
        size = content[at + 8]
        titles.append(content[at + 9 : at + 9 + size])
        at += 9 + size
    return titles


@pytest.mark.parametrize("fps", [Fraction(15), FPS, Fraction(1_000_000, 999_999)])
def test_chapters_are_exact(tmp_path: Path, film: Path, fps: Fraction) -> None:
    made = encode_all([NINE], encoding(fps), tmp_path)
    join(made, encoding(fps), film, Extras(chapters=(Chapter("one", 0, 4), Chapter("二\n", 4, 9))))
    with av.open(str(film)) as container:
        found = container.chapters()
    bases = [chapter["time_base"] or 0 for chapter in found]
    assert [chapter["start"] * base for chapter, base in zip(found, bases, strict=True)] == [0, 4 / fps]
    assert [chapter["end"] * base for chapter, base in zip(found, bases, strict=True)] == [4 / fps, 9 / fps]
    assert [chapter["metadata"]["title"] for chapter in found] == ["one", "二\n"]


def test_many_chapters_with_long_titles(tmp_path: Path, film: Path) -> None:
    """One of the two lists in the file counts chapters, and bytes of a title, in a byte."""
    made = encode_all([NINE], encoding(), tmp_path) * 40
    chapters = tuple(Chapter(f"{number} " + "猫" * 100, number, number + 1) for number in range(360))
    assert join(made, encoding(), film, Extras(chapters=chapters)) == 360
    with av.open(str(film)) as container:
        titles = [chapter["metadata"]["title"] for chapter in container.chapters()]
    assert len(titles) == 360
    assert len(short_list(film)) == 255
    for title in short_list(film):
        title.decode("utf-8")
    assert all(title == f"{number} " + "猫" * title.count("猫") for number, title in enumerate(titles))


# --- metadata, XMP ---


def test_xmp_lies_behind_all_else(pieces: list[Path], tmp_path: Path, film: Path) -> None:
    packet = "<x:xmpmeta>猫</x:xmpmeta>".encode() * 100_000
    plain = tmp_path / "plain.mp4"
    join(pieces, encoding(), plain, Extras())
    join(pieces, encoding(), film, Extras(xmp=packet))
    assert xmp_of(film) == packet
    assert film.read_bytes().startswith(plain.read_bytes())
    assert_shows(film, faded_pieces(), Fraction(15))


def test_two_megabytes_of_comment_break_nothing(pieces: list[Path], film: Path) -> None:
    join(pieces, encoding(), film, Extras({"comment": "猫" * 700_000, "title": "Fog"}))
    with av.open(str(film)) as container:
        assert container.metadata["comment"] == "猫" * 700_000
        assert container.metadata["title"] == "Fog"
    assert count_frames(film) == FRAMES


def test_boxes_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    for content in (b"\0\0\0\x20abcd", b"\0\0\0\x04abcd", b"\0\0\0\1abcd" + b"\xff" * 8):
        path.write_bytes(content)
        with path.open("rb") as file, pytest.raises(ValueError, match="does not fit"):
            list(boxes(file, 0, len(content)))
    path.write_bytes(b"\0\0\0\1abcd" + bytes([0] * 7 + [18]) + b"xy" + b"\0\0\0\0last!")
    with path.open("rb") as file:
        assert [(b.kind, b.start, b.stop) for b in boxes(file, 0, 27)] == [
            (b"abcd", 16, 18),
            (b"last", 26, 27),
        ]


def test_a_full_disk_at_the_xmp_leaves_yesterdays_film(pieces: list[Path], film: Path) -> None:
    join(pieces, encoding(), film, Extras())
    size, packet = film.stat().st_size, b"x" * 100_000
    film.write_text("the film of yesterday")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5_000, hard))
    try:
        with pytest.raises(RenderError, match="cannot be written: File too large"):
            join(pieces, encoding(), film, Extras(xmp=packet))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert film.read_text() == "the film of yesterday"
    assert [path.name for path in film.parent.iterdir()] == ["film.mp4"]


LONG = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from cut_frames import encoding
from svi_story.cut.extras import Cue, Extras
from svi_story.cut.join import join
pieces = [Path(path) for path in {pieces!r}] * {times}
extras = Extras(captions=(Cue("long", 0, 5),), audio=Path({audio!r}))
frames = join(pieces, encoding(), Path({film!r}), extras)
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_sound(pieces: list[Path], tmp_path: Path, film: Path) -> None:
    """A caption at the start only, and sound to the end: nobody waits for the next caption."""
    audio = str(clicks(tmp_path / "sound.m4a", LENGTH * 160, 10))

    def run(times: int) -> list[int]:
        paths = [str(path) for path in pieces]
        tests = str(Path(__file__).parent)
        code = LONG.format(tests=tests, pieces=paths, times=times, audio=audio, film=str(film))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    (few, little), (many, much) = run(8), run(160)
    assert (few, many) == (8 * FRAMES, 160 * FRAMES)
    assert much < 1.1 * little
    assert len(heard(film)) == 160 * LENGTH
