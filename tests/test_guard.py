"""Files from strangers cost no more than their size justifies, whatever they claim."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import media_fuzz
import numpy as np
import pytest
from bundle_support import bundle_of, honest, members_of, with_manifest
from PIL import Image
from sound_files import noise, write_sound

from svi_story.errors import InputError
from svi_story.media import guard, guard_child
from svi_story.media.audio_files import SoundError, open_sound
from svi_story.media.images import PictureError, fit_picture, open_picture
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.model import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEGABYTES = 1000
"""That any process may take while a command runs."""
WEBP = "524946461a000000574542505650384c0e0000002ffeffdb05071011fd0f4444ff03"
"""16383x6000 black pixels in 34 bytes."""
MEASURED = """
import json, resource, subprocess, sys
program = "from svi_story.cli import main; main()"
done = subprocess.run([sys.executable, "-c", program, *sys.argv[1:]], capture_output=True, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(json.dumps([done.returncode, done.stdout + done.stderr, peak]))
"""


@pytest.fixture(autouse=True)
def own_child() -> Iterator[None]:
    """A process behind the guard for each test."""
    guard.stop()
    yield
    guard.stop()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, before: bytes = b"", kind: int = 0, depth: int = 1) -> bytes:
    """A PNG of zeros, with any chunks before its pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width * depth + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def exif_that_grows() -> bytes:
    """A directory of 65,535 entries, each of which is all of it: 700 kB that decode to 46 GB."""
    entries = b"".join(struct.pack(">HHII", tag, 7, 700_000, 0) for tag in range(65_535))
    return b"MM\0*" + struct.pack(">IH", 8, 65_535) + entries + bytes(4)


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is there two thousand times."""
    path = Path("scans.jpg")
    Image.effect_noise((64, 64), 50).save(path, progressive=True)
    data = path.read_bytes()
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * 2000 + b"\xff\xd9"


def many_samples() -> bytes:
    """An M4A of less than a kilobyte whose tables claim 130 million packets."""
    count = 130_000_000

    def box(kind: bytes, *parts: bytes) -> bytes:
        return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)

    entry = box(
        b"sowt", bytes(6), struct.pack(">H", 1), bytes(8), struct.pack(">HHHHI", 2, 16, 0, 0, 48_000 << 16)
    )
    tables = box(
        b"stbl",
        box(b"stsd", bytes(4), struct.pack(">I", 1), entry),
        box(b"stts", bytes(4), struct.pack(">III", 1, count, 1024)),
        box(b"stsc", bytes(4), struct.pack(">IIII", 1, 1, count, 1)),
        box(b"stsz", bytes(4), struct.pack(">II", 8, count)),
        box(b"stco", bytes(4), struct.pack(">II", 1, 48)),
    )
    media = box(
        b"mdia",
        box(b"mdhd", struct.pack(">IIIIIHH", 0, 0, 0, 48_000, 144_000, 0x55C4, 0)),
        box(b"hdlr", struct.pack(">II4s", 0, 0, b"soun"), bytes(13)),
        box(b"minf", box(b"smhd", bytes(8)), tables),
    )
    return (
        box(b"ftyp", b"M4A \0\0\0\0M4A isom") + box(b"mdat", bytes(512)) + box(b"moov", box(b"trak", media))
    )


def many_tags() -> bytes:
    """An MP3 behind an ID3 tag whose frames decompress to 600 MB."""

    def safe(number: int) -> bytes:
        return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))

    size = 200 * 2**20
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()
    tag = (b"TXXX" + safe(len(packed) + 4) + b"\0\x09" + safe(size) + packed) * 3
    return b"ID3\4\0\0" + safe(len(tag)) + tag + (b"\xff\xfb\x90\x00" + bytes(413)) * 60


GIF = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
PICTURES: dict[str, Callable[[], bytes]] = {
    "small.webp": lambda: bytes.fromhex(WEBP),
    "scans.jpg": many_scans,
    "exif.png": lambda: png(8, 8, before=chunk(b"eXIf", exif_that_grows())),
    "chunks.png": lambda: png(8, 8, before=chunk(b"prVt", b"") * 30_000),
    "text.png": lambda: png(8, 8, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26), 9))),
    "profile.png": lambda: png(8, 8, before=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26), 9))),
    "comment.gif": lambda: GIF + b"!\xfe" + (b"\xff" + bytes(255)) * 40_000,
    "frame.gif": lambda: GIF + b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\2\2\x44\1\0;",
    "claim.bmp": lambda: b"BM" + struct.pack("<IIIIiiHHI", 154, 0, 54, 40, 9999, -9999, 1, 24, 0) + bytes(96),
    "tile.tif": lambda: tiff({322: 65_520, 323: 65_520, 324: 200, 325: 4000}),
    "samples.tif": lambda: tiff({273: 200, 278: 64, 279: 4096, 277: 65_535}),
}
SOUNDS: dict[str, Callable[[], bytes]] = {"samples.m4a": many_samples, "tags.mp3": many_tags}


def tiff(tags: dict[int, int]) -> bytes:
    fields = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, **tags}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(fields.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4096)


def measured(*arguments: object) -> tuple[int, str, float]:
    """How a command ended, what it wrote, and the most memory in MB of any of its processes."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, text, peak = json.loads(done.stdout)
    return code, text, peak


def child() -> int:
    """The process id of the one behind the guard."""
    process = guard._CHILD._process  # its tests look inside
    assert process is not None
    return process.pid


def samples_of(path: Path) -> int:
    with open_sound(path) as file:
        return guard.count_samples(path, file)


def limit(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Start the process behind the guard again, with another limit."""
    changed = f"from svi_story.media import guard_child; guard_child.{limit}; from svi"
    monkeypatch.setattr(guard, "_BOOT", guard._BOOT.replace("from svi", changed))
    guard.stop()


@pytest.mark.parametrize("command", ["validate", pytest.param("plan", marks=pytest.mark.slow), "render"])
def test_a_board_of_bombs_is_refused_for_little(write_board: Callable[..., Path], command: str) -> None:
    clips: list[dict[str, Any]] = []
    for name, make in {**PICTURES, **SOUNDS}.items():
        Path(name).write_bytes(make())
        clips.append({"prompt": "Fog.", "reference" if name in PICTURES else "voice": name})
        if len(clips) > 1:
            clips[-1]["transition"] = "cut"
    code, text, peak = measured(command, write_board(clips=clips))
    assert code == 2
    assert "Traceback" not in text
    for name in PICTURES:
        assert f"the image {name}" in text.replace(f"{Path.cwd()}/", "")
    assert "samples.m4a" in text
    assert peak < MEGABYTES


@pytest.mark.parametrize("command", ["validate", "render"])
def test_a_bundle_of_bombs_is_refused_for_little(write_board: Callable[..., Path], command: str) -> None:
    sound = write_sound(Path("voice.m4a"), noise(4800))
    board = write_board(clips=[{"prompt": "Fog.", "voice": sound.name}])
    members = members_of(bundle_of(board, Path("b.zip")))
    bombs = {".png": bytes.fromhex(WEBP), ".m4a": many_samples()}
    members |= {name: bombs[name[-4:]] for name in members if name[-4:] in bombs}
    code, text, peak = measured(command, honest(Path("bombs.zip"), with_manifest(members)))
    assert code == 2
    assert "Traceback" not in text
    assert 'the image "anchor.png" is too large' in text
    assert 'the sound "voice.m4a" is' in text
    assert peak < MEGABYTES


@pytest.mark.parametrize("side", [4000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_largest_picture_is_read(write_board: Callable[..., Path], side: int) -> None:
    """Up to ten thousand by ten thousand, with a palette and transparency: twelve kilobytes."""
    palette = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\x80\xff")
    Path("large.png").write_bytes(png(side, side, before=palette, kind=3))
    code, text, peak = measured("validate", write_board(reference="large.png"))
    assert code == 0, text
    assert peak < MEGABYTES


def test_what_no_inspection_finds_is_stopped_by_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, "SECONDS = 0.5")
    endless = tmp_path / "endless.png"  # Pillow takes such prefixes off one by one
    endless.write_bytes(png(8, 8, before=chunk(b"eXIf", b"Exif\0\0" * 2**20)))
    with pytest.raises(PictureError, match="takes more time to read than its size justifies"):
        guard.check_picture(endless)
    large = tmp_path / "large.png"
    large.write_bytes(PICTURES["exif.png"]())
    with pytest.raises(PictureError, match="needs too much memory"):
        guard.check_picture(large)


def test_a_sound_that_needs_too_much_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sound(tmp_path / "a.wav", noise(48_000))
    assert samples_of(path) == 48_000
    limit(monkeypatch, "SOUND_MEMORY = -(2**24)")
    with pytest.raises(SoundError):
        samples_of(path)


def test_the_guard_reads_what_open_picture_reads(tmp_path: Path, picture: Path) -> None:
    for fit in ("crop", "pad", "stretch"):
        seen = guard.fitted_picture(picture, 48, 80, fit)
        np.testing.assert_array_equal(seen, fit_picture(open_picture(picture), 48, 80, fit))
    with pytest.raises(PictureError, match="does not exist"):
        guard.check_picture(tmp_path / "missing.png")


def test_one_process_reads_all_files(picture: Path, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav", noise(480))
    guard.check_picture(picture)
    first = child()
    for _ in range(20):
        guard.check_picture(picture)
        assert samples_of(sound) == 480
        with pytest.raises(PictureError):
            guard.check_picture(sound)
    assert child() == first


def test_threads_take_turns(picture: Path) -> None:
    expected = guard.fitted_picture(picture, 64, 64, "crop")
    seen: list[bool] = []

    def read() -> None:
        seen.extend((guard.fitted_picture(picture, 64, 64, "crop") == expected).all() for _ in range(20))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 80


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_is_replaced(picture: Path, number: int) -> None:
    guard.check_picture(picture)
    first = child()
    os.kill(first, number)
    guard.check_picture(picture)
    assert child() != first


def test_a_process_that_answers_too_late_is_replaced(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard.check_picture(picture)
    os.kill(child(), signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(guard, "_DEADLINE", 0.2)
        with pytest.raises(PictureError, match="takes more time to read"):
            guard.check_picture(picture)
    guard.check_picture(picture)


def test_an_answer_that_was_interrupted_is_not_taken_for_the_next(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    white = Path("white.png")
    Image.new("RGB", (64, 64), "white").save(white)
    guard.check_picture(picture)

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(guard, "_receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            guard.check_picture(picture)
    assert (guard.fitted_picture(white, 64, 64, "crop") == 255).all()


def test_an_interrupt_does_not_reach_it(picture: Path) -> None:
    guard.check_picture(picture)
    first = child()
    assert os.getpgid(first) != os.getpgid(0)
    os.kill(first, signal.SIGINT)
    guard.check_picture(picture)
    assert child() == first


def test_it_ends_with_its_parent(picture: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from svi_story.media import guard\n"
        "guard.check_picture(Path(sys.argv[1])); print(guard._CHILD._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(picture)], capture_output=True, text=True, check=False
    )
    left = Path("/proc", done.stdout.strip())
    until = time.monotonic() + 60
    while left.exists() and "Z" not in (left / "stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_it_starts_with_an_environment_of_ours(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_PERTURB_", "GLIBC_TUNABLES", "PYTHONSTARTUP", "LD_PRELOAD"):
        monkeypatch.setenv(name, "")
    Path("PIL.py").write_text("raise SystemExit")  # the working folder is no place for modules
    monkeypatch.syspath_prepend("")
    guard.check_picture(picture)
    names = {each.partition(b"=")[0] for each in Path(f"/proc/{child()}/environ").read_bytes().split(b"\0")}
    assert not names & {b"MALLOC_PERTURB_", b"GLIBC_TUNABLES", b"PYTHONSTARTUP", b"LD_PRELOAD"}


@pytest.mark.parametrize(("closed", "code"), [("2>&-", 0), ("<&- 2>&-", 0), ("<&- >&- 2>&-", 1)])
def test_it_works_where_standard_streams_are_closed(
    write_board: Callable[..., Path], closed: str, code: int
) -> None:
    """An answer that cannot be written is an error."""
    program = f'exec "$0" -c "from svi_story.cli import main; main()" validate {write_board()} {closed}'
    done = subprocess.run(["sh", "-c", program, sys.executable], capture_output=True, check=False)
    assert done.returncode == code


def test_known_files_start_no_process(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = write_sound(tmp_path / "a.wav", noise(480))
    first = Fingerprints.load(tmp_path / "memo.json")
    before = first.anchor(picture, Size(64, 64), "crop"), first.recording(sound)
    first.save()

    def refuse(*_: object) -> None:
        raise AssertionError("a file was opened again")

    monkeypatch.setattr(guard._Child, "ask", refuse)
    again = Fingerprints.load(tmp_path / "memo.json")
    assert (again.anchor(picture, Size(64, 64), "crop"), again.recording(sound)) == before
    assert again.fresh == {}


def test_what_was_found_without_rules_is_not_trusted(picture: Path, tmp_path: Path) -> None:
    """A memo of a version that had no guard knows the hash of a bomb's pixels."""
    memo = Fingerprints.load(tmp_path / "memo.json")
    memo.anchor(picture, Size(64, 64), "crop")
    key, _ = memo.fresh
    rules = next(part for part in key.split() if part.startswith("rules-"))
    old = {key.replace(f"{rules} ", ""): "0" * 64}
    (tmp_path / "memo.json").write_text(json.dumps(old))
    again = Fingerprints.load(tmp_path / "memo.json")
    assert again.anchor(picture, Size(64, 64), "crop").pixels != "0" * 64
    again.save()
    assert json.loads((tmp_path / "memo.json").read_text()).items() >= old.items()


def test_a_recording_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = write_sound(tmp_path / "a.wav", noise(480))
    count = guard.count_samples

    def swapped(path: Path, file: Any) -> int:
        samples = count(path, file)
        with sound.open("ab") as other:
            other.write(b"more")
        return samples

    monkeypatch.setattr(guard, "count_samples", swapped)
    with pytest.raises(InputError, match="changed while it was read"):
        Fingerprints(tmp_path / "memo.json").recording(sound)


def test_mutated_files_are_read_or_refused(write_board: Callable[..., Path], svi_story: Any) -> None:
    board = write_board(clips=[{"prompt": "Fog.", "frames": 5}])
    assert svi_story("render", board, "--engine", "animatic").code == 0
    outcome = media_fuzz.Outcome()
    media_fuzz.pictures(random.Random(1), 200, Path(), outcome)
    media_fuzz.sounds(random.Random(2), 132, Path(), outcome)
    media_fuzz.bundles(random.Random(3), 60, board, outcome)
    guard.stop()
    assert outcome.unexpected == []
    assert outcome.crashed == []
    assert outcome.slow == 0
    assert min(outcome.read, outcome.refused) > 50
    assert outcome.longest < 30


def test_the_limits_leave_room_for_what_is_good() -> None:
    """Four hours of speech in Opus at 12 kbit/s: 49 s of processor time on a slow machine."""
    size = 4 * 3600 * 12_000 / 8
    assert guard_child.SECONDS + guard_child.SOUND_SECONDS * size / 1e6 > 4 * 49
