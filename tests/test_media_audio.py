"""Recordings: of every kind exact to the sample, of no kind dangerous."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_bombs import id3
from sound_files import impulse, noise, wav_bytes, write_sound

from svi_story.errors import InputError, on_one_line
from svi_story.media import audio as decoding
from svi_story.media import audio_files as files
from svi_story.media.audio import RecordingReader, count_samples
from svi_story.media.audio_files import BoundedFile, SoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

LENGTH = 48_000 * 2 + 123
GAPLESS = ("wav", "flac", "aiff", "mp3", "opus", "oga", "m4a", "mp4", "webm")
KINDS = (*GAPLESS, "mkv", "aac")


def read_all(path: Path) -> NDArray[np.float32]:
    with RecordingReader(path) as reader:
        return reader.read(0, 10**9)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One recording in every kind of file: noise, then an impulse in silence."""
    folder = tmp_path_factory.mktemp("shelf")
    sound = np.concatenate((noise(48_000), impulse(LENGTH - 48_000, 30_000)))
    return {kind: write_sound(folder / f"sound.{kind}", sound) for kind in KINDS}


@pytest.mark.parametrize("kind", GAPLESS)
def test_every_kind_keeps_length_and_place(shelf: dict[str, Path], kind: str) -> None:
    sound = read_all(shelf[kind])
    assert sound.shape == (count_samples(shelf[kind]), 2) == (LENGTH, 2)
    assert sound.dtype == np.float32
    assert np.abs(sound[60_000:]).argmax(axis=0).tolist() == [18_000, 18_000]


@pytest.mark.parametrize("kind", ["mkv", "aac"])
def test_kinds_that_cannot_say_their_length_have_a_frame_more(shelf: dict[str, Path], kind: str) -> None:
    assert 0 <= count_samples(shelf[kind]) - LENGTH < 2048


@pytest.mark.parametrize(("kind", "error"), [("wav", 0), ("flac", 2e-5), ("aiff", 2e-5), ("mp4", 1e-6)])
def test_lossless_kinds_keep_every_sample(shelf: dict[str, Path], kind: str, error: float) -> None:
    assert np.abs(read_all(shelf[kind])[:48_000] - noise(48_000)).max() <= error


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_every_rate_becomes_48_khz(tmp_path: Path, rate: int) -> None:
    at = rate // 5  # a whole number of samples in both rates
    path = write_sound(tmp_path / "sound.wav", impulse(rate + 7, at), rate)
    sound = read_all(path)
    assert len(sound) == (2 * (rate + 7) * 48_000 + rate) // (2 * rate)
    assert np.abs(sound).argmax(axis=0).tolist() == [9_600, 9_600]


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("samples", [2, 5, 100])
def test_the_shortest_sounds_are_heard(tmp_path: Path, rate: int, samples: int) -> None:
    path = write_sound(tmp_path / "sound.wav", np.full((samples, 2), 0.5), rate)
    assert len(read_all(path)) == (2 * samples * 48_000 + rate) // (2 * rate)


def test_resampling_keeps_tones(tmp_path: Path) -> None:
    def remove_stale_temps(rate: int) -> NDArray[np.float64]:
        seconds = np.arange(rate) / rate
        return np.repeat(0.5 * np.sin(2 * np.pi * (200 * seconds + 2000 * seconds**2))[:, None], 2, axis=1)

    sound = read_all(write_sound(tmp_path / "sound.wav", remove_stale_temps(44_100), 44_100))
    assert np.abs(sound - remove_stale_temps(48_000))[100:-100].max() < 1e-3


def test_one_channel_is_as_loud_on_both_sides(tmp_path: Path) -> None:
    sound = noise(1000)[:, :1]
    path = write_sound(tmp_path / "sound.wav", sound)
    assert np.array_equal(read_all(path), np.repeat(sound, 2, axis=1))


@pytest.mark.parametrize("layout", ["2.1", "quad", "5.1", "7.1"])
def test_many_channels_become_two(tmp_path: Path, layout: str) -> None:
    sound = np.zeros((4800, av.AudioLayout(layout).nb_channels))
    sound[:, 0] = 0.5  # front left
    heard = read_all(write_sound(tmp_path / "sound.wav", sound, layout=layout))
    assert np.allclose(heard, [0.5, 0], atol=1e-6)


def test_unnamed_channels_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(wav_bytes(bytes(48_000), channels=8))
    assert np.array_equal(read_all(path), np.zeros((3000, 2)))


def test_eight_bits_end_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(wav_bytes(b"\x80" * 4410, rate=44_100, channels=1, bits=8))
    assert not read_all(path).any()


@settings(max_examples=30)
@given(places=st.lists(st.tuples(st.integers(0, LENGTH + 9), st.integers(0, 70_000)), max_size=4))
def test_any_place_at_any_time(shelf: dict[str, Path], places: list[tuple[int, int]]) -> None:
    whole = read_all(shelf["mp3"])
    with RecordingReader(shelf["mp3"]) as reader:
        for start, count in places:
            assert np.array_equal(reader.read(start, count), whole[start : start + count])


def test_a_reader_tells_what_it_reads(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "sound.wav", noise(100))
    with RecordingReader(path) as reader:
        before = reader.read(0, 50)
        assert reader.digest() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert np.array_equal(reader.read(0, 50), before)
        assert reader.unchanged()
        with path.open("ab") as file:
            file.write(b"more")
        assert not reader.unchanged()


def test_the_sound_of_a_film(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_film(path, noise(48_000))
    assert count_samples(path) == 48_000


def test_a_film_without_sound_is_refused(tmp_path: Path) -> None:
    write_film(tmp_path / "film.mp4", None)
    assert_refused(tmp_path / "film.mp4", "holds no sound")


def write_film(path: Path, sound: NDArray[np.float32] | None) -> None:
    with av.open(str(path), "w", options={"movie_timescale": "48000"}) as film:
        video = film.add_stream("libx264", rate=24)
        video.width, video.height = 64, 64
        audio = None if sound is None else film.add_stream("aac", rate=48_000, layout="stereo")
        for number in range(48):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8))
            picture.pts = number
            film.mux(video.encode(picture))
        if sound is not None and audio is not None:
            frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="flt", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, 0
            film.mux(audio.encode(frame))
            film.mux(audio.encode(None))
        film.mux(video.encode(None))


# -- files from strangers


def assert_refused(path: Path, words: str) -> None:
    with pytest.raises(SoundError) as caught:
        count_samples(path)
    said = str(caught.value)
    assert words in said
    assert said.startswith(f"the sound {on_one_line(str(path))} ")
    assert ";" in said, "a cure follows"


HEADER_LIES: dict[str, tuple[bytes, str]] = {
    "no samples": (wav_bytes(b""), "holds no sound"),
    "header only": (wav_bytes(b"", claim=48_000), "cut off"),
    "an hour that is not there": (wav_bytes(bytes(48_000), claim=48_000 * 4 * 3600), "cut off"),
    "1 Hz": (wav_bytes(bytes(4000), rate=1), "samples a second"),
    "0 Hz": (wav_bytes(bytes(4000), rate=0), "damaged"),
    "20 MHz": (wav_bytes(bytes(4000), rate=20_000_000), "samples a second"),
    "no channels": (wav_bytes(bytes(4000), channels=0), "damaged"),
    "16 channels": (wav_bytes(bytes(48_000), channels=16), "16 channels"),
    "65535 channels": (wav_bytes(bytes(4000), channels=65_535), "damaged"),
    "an odd codec": (wav_bytes(bytes(4000), kind=17, bits=4), "adpcm_ima_wav"),
    "NaN": (wav_bytes(np.full(9600, np.nan, "<f4").tobytes(), kind=3, bits=32), "NaN or infinite"),
    "infinite": (
        wav_bytes(np.full(9600, np.inf, "<f4").tobytes(), kind=3, bits=32),
        "NaN or infinite",
    ),
    "text": (b"Dear reader, this is no sound.\n" * 99, "none of WAV"),
    "zeros": (bytes(100_000), "none of WAV"),
    "random bytes": (np.random.default_rng(5).bytes(100_000), "damaged"),
    "half an Ogg page": (b"OggS" + bytes(10), "cut off"),
}


@pytest.mark.parametrize("lie", HEADER_LIES)
def test_what_a_header_claims_is_not_believed(tmp_path: Path, lie: str) -> None:
    data, words = HEADER_LIES[lie]
    (tmp_path / "sound.wav").write_bytes(data)
    assert_refused(tmp_path / "sound.wav", words)


def test_a_length_that_was_not_known_yet_is_no_lie(tmp_path: Path) -> None:
    """Programs that write into a pipe cannot go back and fill the length in."""
    for claim in (2**32 - 1, 2**31 - 1):
        (tmp_path / "sound.wav").write_bytes(wav_bytes(bytes(48_000), claim=claim))
        assert count_samples(tmp_path / "sound.wav") == 12_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_file_that_was_cut_off_is_refused(
    shelf: dict[str, Path], tmp_path: Path, kind: str, part: float
) -> None:
    data = shelf[kind].read_bytes()
    (tmp_path / "sound").write_bytes(data[: int(len(data) * part)])
    assert_refused(tmp_path / "sound", "")


@pytest.mark.parametrize("kind", ["flac", "mp3", "opus", "oga", "m4a", "mkv", "webm", "aac"])
def test_a_damaged_file_is_refused(shelf: dict[str, Path], tmp_path: Path, kind: str) -> None:
    data = bytearray(shelf[kind].read_bytes())
    middle = len(data) // 3
    data[middle : middle + 400] = bytes(byte ^ 0x5A for byte in data[middle : middle + 400])
    (tmp_path / "sound").write_bytes(data)
    assert_refused(tmp_path / "sound", "damaged")


LISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{path}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>{path}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 4000 RTP/AVP 0\n",
    "playlist": "[playlist]\nFile1={path}\nNumberOfEntries=1\n",
}


@pytest.mark.parametrize("suffix", ["wav", "m3u8", "ffconcat", "mpd"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_other_files_is_no_sound(
    shelf: dict[str, Path], tmp_path: Path, kind: str, suffix: str
) -> None:
    path = tmp_path / f"list.{suffix}"
    path.write_text(LISTS[kind].format(path=shelf["flac"]))
    assert_refused(path, "none of WAV")


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "empty").touch()
    for path, words in {
        tmp_path / "pipe": "not a regular file",
        tmp_path / "zero": "not a regular file",
        tmp_path / "loop": "symbolic links",
        tmp_path / "empty": "0 bytes",
        tmp_path / "missing.wav": "does not exist",
        tmp_path: "is a folder",
        tmp_path / "a\0b": "null",
        tmp_path / ("n" * 300): "too long",
    }.items():
        assert_refused(path, words)


def test_a_huge_file_is_not_even_opened(tmp_path: Path) -> None:
    with (tmp_path / "sound.wav").open("wb") as file:
        file.truncate(files.MAX_BYTES + 1)
    assert_refused(tmp_path / "sound.wav", "larger than 4 GiB")


def test_a_small_file_that_lasts_for_ever_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sound(tmp_path / "sound.flac", np.zeros((480_000, 1)), 8000)
    assert path.stat().st_size < 20_000
    assert count_samples(path) == 60 * 48_000
    monkeypatch.setattr(decoding, "MAX_VALUES", 400_000)
    assert_refused(path, "too long for its rate")
    monkeypatch.setattr(decoding, "MAX_SECONDS", 59)
    assert_refused(path, "is longer than")


@pytest.mark.parametrize("tail", [bytes(1000), b"LYRICSBEGIN" + b"la " * 300, b"TAG" + b"x" * 125])
def test_what_follows_the_sound_of_an_mp3_is_nothing(
    shelf: dict[str, Path], tmp_path: Path, tail: bytes
) -> None:
    (tmp_path / "sound.mp3").write_bytes(shelf["mp3"].read_bytes() + tail)
    assert np.array_equal(read_all(tmp_path / "sound.mp3"), read_all(shelf["mp3"]))


def test_a_wav_that_counts_its_first_bytes_twice_is_whole(tmp_path: Path) -> None:
    data = wav_bytes(bytes(4800))
    (tmp_path / "sound.wav").write_bytes(data[:4] + len(data).to_bytes(4, "little") + data[8:])
    assert count_samples(tmp_path / "sound.wav") == 1200


def test_a_change_of_rate_midway_is_refused(tmp_path: Path) -> None:
    one = write_sound(tmp_path / "1.oga", noise(48_000)).read_bytes()
    two = write_sound(tmp_path / "2.oga", noise(44_100), 44_100).read_bytes()
    (tmp_path / "sound.oga").write_bytes(one + two)
    assert_refused(tmp_path / "sound.oga", "midway")


ID3V2 = b"ID3\x04\0\0\0\0\0\x15TIT2\0\0\0\x0b\0\0\x03some title"
ID3V1 = b"TAG" + b"some title".ljust(125, b"\0")
APE_ITEM = struct.pack("<II", 5, 0) + b"Artist\0" + b"someone"[:5]
APE = b"APETAGEX" + struct.pack("<IIII", 2000, len(APE_ITEM) + 32, 1, 5 << 29) + bytes(8)
APE_FOOTER = b"APETAGEX" + struct.pack("<IIII", 2000, len(APE_ITEM) + 32, 1, 0) + bytes(8)
SOUND = noise(24_000)
PCM = (SOUND * 32767).astype("<i2").tobytes()
WAV = wav_bytes(PCM)
INFO = b"LIST" + struct.pack("<I", 16) + b"INFOISFT" + struct.pack("<I", 4) + b"Lavf"


def aiff_bytes(data: bytes, frames: int | None = None, rate: bytes = b"\x40\x0e\xbb\x80") -> bytes:
    """An AIFF file in stereo, 16 bits, by hand."""
    frames = len(data) // 4 if frames is None else frames
    comm = b"COMM" + struct.pack(">IhIh", 18, 2, frames, 16) + rate.ljust(10, b"\0")
    body = b"AIFF" + comm + b"SSND" + struct.pack(">III", len(data) + 8, 0, 0) + data
    return b"FORM" + struct.pack(">I", len(body)) + body


def rf64_bytes(data: bytes) -> bytes:
    sizes = struct.pack("<IQQQI", 28, len(data) + 72, len(data), len(data) // 4, 0)
    return b"RF64\xff\xff\xff\xffWAVEds64" + sizes + wav_bytes(data, claim=2**32 - 1)[12:]


BIG_ENDIAN = np.frombuffer(PCM, "<i2").astype(">i2").tobytes()
AIFF = aiff_bytes(BIG_ENDIAN)
PLACEHOLDER = wav_bytes(PCM, claim=2**32 - 1)
JOINED: dict[str, tuple[bytes, int]] = {
    "wav": (WAV + WAV, 2),
    "wav, three with metadata": ((WAV + INFO) * 3, 3),
    "wav, lengths not known yet": (PLACEHOLDER + PLACEHOLDER, 2),
    "wav, lengths of zero": (wav_bytes(PCM, claim=0) * 2, 2),
    "wav, the first length covers all": (wav_bytes(PCM + WAV + WAV), 3),
    "wav, odd without padding": (wav_bytes(PCM + b"\0") + WAV, 2),
    "wav, odd with padding": (wav_bytes(PCM + b"\0") + b"\0" + WAV, 2),
    "wav, two chunks of sound": (WAV + b"data" + struct.pack("<I", len(PCM)) + PCM, 2),
    "rf64": (rf64_bytes(PCM) * 2, 2),
    "aiff": (AIFF + AIFF, 2),
    "aiff, fewer frames in its header": (aiff_bytes(BIG_ENDIAN * 2, 24_000), 2),
    "aiff in the sound of the first": (aiff_bytes(BIG_ENDIAN + AIFF), 2),
}
"""Files with headers in the middle, and how many times SOUND they hold."""


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_are_read_to_their_end(tmp_path: Path, name: str) -> None:
    data, times = JOINED[name]
    (tmp_path / "sound").write_bytes(data)
    heard = read_all(tmp_path / "sound")
    assert len(heard) == times * len(SOUND)
    assert np.abs(heard - np.tile(SOUND, (times, 1))).max() < 1e-4


NOT_THE_WHOLE: dict[str, tuple[bytes, str]] = {
    "a header written too early": (wav_bytes(PCM, claim=len(PCM) // 2), "48000 more bytes follow; if they"),
    "an aiff header written too early": (AIFF + BIG_ENDIAN, "96000 more bytes follow"),
    "wavs of two rates": (WAV + wav_bytes(PCM, rate=44_100), "several files of different formats"),
    "wavs of one and two channels": (WAV + wav_bytes(PCM, channels=1), "several files of different formats"),
    "aiffs of two rates": (AIFF + aiff_bytes(BIG_ENDIAN, rate=b"\x40\x0e\xac\x44"), "different formats"),
    "a wav and an aiff": (WAV + AIFF, "several files of different formats"),
    "two wavs, the second cut off": ((WAV + WAV)[:-5000], "the last of the joined files ends at"),
    "more pieces than anybody joins": (wav_bytes(bytes(4)) * 20_000, "consists of more than 16384"),
    "big-endian samples": (b"RIFX" + WAV[4:], "big-endian"),
}


@pytest.mark.parametrize("name", NOT_THE_WHOLE)
def test_a_part_is_never_taken_for_the_whole(tmp_path: Path, name: str) -> None:
    data, words = NOT_THE_WHOLE[name]
    (tmp_path / "sound").write_bytes(data)
    assert_refused(tmp_path / "sound", words)


@pytest.mark.parametrize(
    "tail", [b"TAG" + bytes(125), bytes(9999), INFO, INFO[:20], b"\n", b"ID3\4" + bytes(60)]
)
def test_what_follows_a_wav_may_be_tags_or_zeros(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "sound").write_bytes(PLACEHOLDER[:4] + b"\xff" * 4 + WAV[8:] + tail)
    assert count_samples(tmp_path / "sound") == len(SOUND)


@pytest.mark.parametrize("kind", ["m4a", "mp4", "mkv", "webm"])
def test_a_second_movie_is_not_ignored(shelf: dict[str, Path], tmp_path: Path, kind: str) -> None:
    (tmp_path / "sound").write_bytes(shelf[kind].read_bytes() * 2)
    assert_refused(tmp_path / "sound", "holds a second recording from byte")


@pytest.mark.parametrize("kind", ["flac", "opus", "oga", "aac"])
def test_other_kinds_may_be_joined(shelf: dict[str, Path], tmp_path: Path, kind: str) -> None:
    (tmp_path / "sound").write_bytes(shelf[kind].read_bytes() * 2)
    assert 0 <= count_samples(tmp_path / "sound") - 2 * count_samples(shelf[kind]) < 2048


COVER = id3(3, b"APIC" + struct.pack(">IH", 2**18, 0) + np.random.default_rng(2).bytes(2**18))


@pytest.mark.parametrize(
    "tags",
    [b"", ID3V2, ID3V1, ID3V1 + ID3V2, APE + APE_ITEM + APE_FOOTER + ID3V1, APE_ITEM + APE_FOOTER, COVER],
    ids=["none", "2", "1", "1 and 2", "APE and 1", "APE without header", "cover"],
)
def test_joined_mp3_files_are_read_past_tags_in_the_middle(
    shelf: dict[str, Path], tmp_path: Path, tags: bytes
) -> None:
    frames = shelf["mp3"].read_bytes()
    frames = frames[frames.index(b"\xff\xfb") :]
    (tmp_path / "one").write_bytes(frames)
    (tmp_path / "two").write_bytes(frames + tags + frames)
    (tmp_path / "more").write_bytes(ID3V2 + (frames + tags) * 3)
    one, two, more = (count_samples(tmp_path / name) for name in ("one", "two", "more"))
    assert all(0 <= length - LENGTH < 4 * 1152 for length in (two - one, more - two))
    other = write_sound(tmp_path / "other.mp3", noise(44_100), 44_100).read_bytes()
    (tmp_path / "rates").write_bytes(frames + tags + other)
    assert_refused(tmp_path / "rates", "changes its rate")


def test_reading_in_circles_comes_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SPARE_BYTES", 0)
    path = tmp_path / "sound"
    path.write_bytes(bytes(1000))
    file: BinaryIO
    with path.open("rb", buffering=0) as file:
        bounded = BoundedFile(file)
        for _ in range(20):
            bounded.seek(0, os.SEEK_SET)
            assert len(bounded.read(1000)) == 1000
        with pytest.raises(OSError, match="circles"):
            all(bounded.read(1000) is not None for _ in range(30))


def test_fuzzed_files_are_read_or_refused(shelf: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    for kind in KINDS:
        data = np.frombuffer(shelf[kind].read_bytes(), np.uint8)
        for _ in range(6):
            broken = data[: rng.integers(1, len(data) + 1)].copy()
            for place in rng.integers(0, min(len(broken), 3000), 20):
                broken[place] = rng.integers(0, 256)
            (tmp_path / "sound").write_bytes(broken.tobytes())
            with suppress(InputError):
                assert count_samples(tmp_path / "sound") > 0


# -- through the command line


def test_bad_sounds_are_told_with_their_place(
    write_board: Callable[..., Path], svi_story: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "hum.wav").write_bytes(wav_bytes(b""))
    (tmp_path / "half.wav").write_bytes(wav_bytes(bytes(100), claim=200))
    clip = {"prompt": "A cat sits by the window.", "voice": "half.wav", "sounds": ["hum.wav"]}
    ended = svi_story("validate", write_board(clips=[clip], cut={"audio": "board.yaml"}))
    assert ended.code == 2
    for said in (
        r"board.yaml:\d+: clips\[0\].voice \(clip \"clip-01\"\): the sound \S*half.wav is cut off",
        r"board.yaml:\d+: clips\[0\].sounds\[0\] \(clip \"clip-01\"\): the sound \S*hum.wav holds no sound",
        r"board.yaml:\d+: cut.audio: the sound \S*board.yaml is damaged, or none of WAV",
    ):
        assert re.search(said, " ".join(ended.err.split())), said


def test_joined_files_are_reported(
    write_board: Callable[..., Path], svi_story: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "joined.wav").write_bytes(WAV + INFO + WAV)
    (tmp_path / "one.wav").write_bytes(WAV + INFO)
    clip = {"prompt": "A cat sits by the window.", "voice": "joined.wav", "sounds": ["one.wav"]}
    ended = svi_story("validate", write_board(clips=[clip]))
    error = " ".join(ended.err.split())
    what = "joined.wav: consists of 2 sound files, one behind the other; all of them are read"
    assert (ended.code, error.count(what), error.count("consists")) == (0, 1, 1)


def test_boards_without_sound_import_no_libav(write_board: Callable[..., Path]) -> None:
    script = (
        "import sys; from svi_story.cli.app import app\n"
        "try: app(['plan', sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "print('av' in sys.modules, 'moviepy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(write_board())], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False False"
