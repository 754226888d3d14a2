"""Audio files that declare, unpack to, or consist of more than their size justifies."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sound_bombs import BOMBS, HARMLESS, MDIR, PICTURE, PLAIN_SAMPLES, box, flac_block, full, id3, page
from sound_files import noise, write_sound

from svi_story.media.audio import RecordingReader, count_samples
from svi_story.media.audio_files import BoundedFile, FileView, SoundError
from svi_story.media.containers import inspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

MB = 2**20


def read_all(path: Path) -> NDArray[np.float32]:
    with RecordingReader(path) as reader:
        return reader.read(0, 10**9)


def shown(path: Path) -> bytes:
    """The file as libav sees it."""
    with path.open("rb", buffering=0) as file:
        return BoundedFile(file, inspect(path, file)).read(10**9)


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_declares_too_much_is_refused(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "sound"
    path.write_bytes(BOMBS[bomb]())
    with pytest.raises(SoundError) as caught:
        count_samples(path)
    assert str(caught.value).startswith(f"the sound {path} ")
    assert "; " in str(caught.value), "a cure follows"


@pytest.mark.parametrize("bomb", HARMLESS)
def test_tags_indexes_and_other_tracks_cost_nothing(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "sound"
    path.write_bytes(HARMLESS[bomb]())
    assert count_samples(path) == (75_233 if bomb.startswith("mp3") else PLAIN_SAMPLES)


def test_the_worst_take_little_memory(tmp_path: Path) -> None:
    """Without inspection each of them takes more than a gigabyte, or minutes."""
    worst = {
        **{name: BOMBS[name] for name in ("mp4 packets of one size", "mp4 fragment of many packets")},
        **{name: BOMBS[name] for name in ("mp4 edits", "ogg codebooks", "mkv vorbis without its headers")},
        **{
            name: HARMLESS[name]
            for name in ("mp3 compressed tag, version 4", "mkv other packets of one byte")
        },
    }
    for number, make in enumerate(worst.values()):
        (tmp_path / str(number)).write_bytes(make())
    program = (
        "import resource, sys\n"
        "from contextlib import suppress\n"
        "from pathlib import Path\n"
        "import av, numpy\n"
        "from svi_story.media.audio import count_samples\n"
        "from svi_story.media.audio_files import SoundError\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = most()\n"
        "for path in sys.argv[1:]:\n"
        "    with suppress(SoundError):\n"
        "        count_samples(Path(path))\n"
        "print(most() - before)\n"
    )
    paths = [str(tmp_path / str(number)) for number in range(len(worst))]
    done = subprocess.run(
        [sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 400


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_they_are_told_with_their_place(
    write_board: Callable[..., Path], svi_story: Callable[..., Any], tmp_path: Path, command: str
) -> None:
    (tmp_path / "small.m4a").write_bytes(BOMBS["mp4 packets of one size"]())
    (tmp_path / "tags.flac").write_bytes(BOMBS["flac comments"]())
    (tmp_path / "cover.mp3").write_bytes(HARMLESS["mp3 compressed tag, version 3"]())
    clip = {"prompt": "A cat sits by the window.", "voice": "small.m4a", "sounds": ["tags.flac", "cover.mp3"]}
    ended = svi_story(command, write_board(clips=[clip]))
    said = " ".join(ended.err.split())
    assert ended.code == 2
    assert (
        "small.m4a is cut off or damaged: it declares 60000000 packets of 8 bytes, and the file has" in said
    )
    assert "tags.flac is damaged: its header declares 60000 comments; save it again" in said
    assert "cover.mp3" not in said


# -- what is left out changes no sample


def with_udta(data: bytes, *tags: bytes) -> bytes:
    """An M4A file that ends in its header, with tags in it."""
    inside = box(b"udta", full(b"meta", more=MDIR + box(b"ilst", *tags)))
    at = data.rindex(b"moov") - 4
    size = struct.unpack_from(">I", data, at)[0]
    assert at + size == len(data)
    return data[:at] + struct.pack(">I", size + len(inside)) + data[at + 4 :] + inside


def gapless(priming: int) -> bytes:
    text = f" 00000000 {priming:08X} 00000000 0000000000000000"
    mean, name = full(b"mean", more=b"com.apple.iTunes"), full(b"name", more=b"iTunSMPB")
    return box(b"----", mean, name, box(b"data", bytes([0, 0, 0, 1, 0, 0, 0, 0]), text.encode()))


def test_a_cover_is_not_shown_to_libav(tmp_path: Path) -> None:
    sound = noise(48_000)
    cover = b"APIC" + struct.pack(">IH", 3_000_000, 0) + b"\0image/png\0\3\0" + bytes(3_000_000 - 13)
    covers: dict[str, Callable[[bytes], bytes]] = {
        "mp3": lambda data: id3(3, cover) + data,
        "flac": lambda data: data[:42] + flac_block(6, bytes(3_000_000)) + data[42:],
        "m4a": lambda data: with_udta(data, box(b"covr", PICTURE)),
        "wav": lambda data: data + b"id3 " + struct.pack("<I", 3_000_020) + id3(3, cover),
    }
    for kind, insert in covers.items():
        plain = write_sound(tmp_path / f"plain.{kind}", sound)
        covered = tmp_path / f"covered.{kind}"
        covered.write_bytes(insert(plain.read_bytes()))
        assert np.array_equal(read_all(covered), read_all(plain)), kind
        if kind == "mp3":
            assert shown(covered) == shown(plain)
        else:
            assert b"covr" not in shown(covered)
            assert b"id3 " not in shown(covered)


def test_the_silence_that_an_encoder_put_first_is_still_left_out(tmp_path: Path) -> None:
    plain = write_sound(tmp_path / "plain.m4a", noise(48_000))
    (tmp_path / "told.m4a").write_bytes(
        with_udta(plain.read_bytes(), box(b"\xa9nam", PICTURE), gapless(4096))
    )
    assert b"iTunSMPB" in shown(tmp_path / "told.m4a")
    assert b"\xa9nam" not in shown(tmp_path / "told.m4a")
    whole, told = read_all(plain), read_all(tmp_path / "told.m4a")
    assert np.array_equal(told[:40_000], whole[4096 - 1024 :][:40_000])


def test_tags_before_and_between_frames_are_left_out(tmp_path: Path) -> None:
    aac = write_sound(tmp_path / "plain.aac", noise(48_000)).read_bytes()
    tag = id3(4, b"TIT2" + b"\0\0\0\5\0\0\3name")
    (tmp_path / "first.aac").write_bytes(tag * 3 + aac)
    (tmp_path / "between.aac").write_bytes(aac + tag + aac)
    plain = read_all(tmp_path / "plain.aac")
    assert np.array_equal(read_all(tmp_path / "first.aac"), plain)
    assert len(read_all(tmp_path / "between.aac")) > 2 * len(plain) - 2048
    flac = write_sound(tmp_path / "plain.flac", noise(48_000))
    (tmp_path / "first.flac").write_bytes(tag + flac.read_bytes())
    assert np.array_equal(read_all(tmp_path / "first.flac"), read_all(flac))


def test_ogg_pages_are_checked_as_libav_does(tmp_path: Path) -> None:
    """A page with a wrong checksum is none, and what looks like a page inside of it may be one."""
    path = tmp_path / "sound"
    comments = b"\0\0\0\0" + struct.pack("<I", 5000)
    hidden = page(b"\x13", b"OpusHead" + bytes(11), flags=2) + page(b"\x10", b"OpusTags" + comments)
    wrong = page(bytes([255] * (len(hidden) // 255) + [len(hidden) % 255]), hidden, serial=2)
    path.write_bytes(wrong)
    inspect_file(path)
    path.write_bytes(wrong[:22] + b"\0\0\0\0" + wrong[26:])
    with pytest.raises(SoundError, match="5000 comments"):
        inspect_file(path)


def inspect_file(path: Path) -> FileView:
    with path.open("rb", buffering=0) as file:
        return inspect(path, file)


@given(
    patches=st.dictionaries(st.integers(0, 9), st.binary(min_size=1, max_size=10), max_size=6),
    reads=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 60))),
)
def test_a_view_replaces_the_same_bytes_in_any_reading(
    patches: dict[int, bytes], reads: list[tuple[int, int]]
) -> None:
    data = bytes(range(100))
    whole = bytearray(data)
    view = FileView("wav", 0)
    for slot, patch in sorted(patches.items()):
        view.patches.append((10 * slot, patch))
        whole[10 * slot : 10 * slot + len(patch)] = patch
    for at, count in reads:
        assert view.patched(at, data[at : at + count]) == whole[at : at + count]


def test_sounds_that_are_nearly_nothing_are_read(tmp_path: Path) -> None:
    """Five minutes of silence in fifty kilobytes are a sound like any other."""
    silence = np.zeros((48_000 * 300, 2), np.float32)
    path = write_sound(tmp_path / "silence.flac", silence)
    assert path.stat().st_size < 100_000
    assert count_samples(path) == len(silence)
