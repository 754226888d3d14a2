"""A render in miniature on the cache, and faults at every touch of the disk.

A program too: `python cache_scenario.py killed|power_cut|hammer|render FOLDER ...` says JSON lines.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import signal
import sys
import time
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av  # noqa: F401 - a fork should have it already
import numpy as np
import safetensors.numpy  # noqa: F401 - likewise

from svi_story import files
from svi_story.cache.store import Store
from svi_story.errors import RenderError
from svi_story.events import Event, Warned
from svi_story.files import disk
from svi_story.plan.keys import Json, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from svi_story.cache.entry import Entry

INPUTS: dict[str, Json] = {"prompt": "a cat, \u732b \U0001f408", "seed": 7, "guidance": 3.5, "parent": None}
KEY = key_of(INPUTS)
PIECE_INPUTS: dict[str, Json] = {"segment": KEY, "crf": 18}
PIECE_KEY = key_of(PIECE_INPUTS)
CHANGES = ("rename", "replace", "mkdir", "unlink", "rmdir")
COUNT = 5
STEPS = 3
WRITER_CODES = {0: "finished", 1: "bad", 2: "refused", -signal.SIGKILL: "kills"}
DAY = 24 * 3600


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def __call__(self, event: Event) -> None:
        assert isinstance(event, Warned)
        self.warnings.append(event.message)


def sample(work: Any, flavour: int) -> dict[str, NDArray[Any]]:
    """Sampling with checkpoints: the same result wherever it goes on."""
    state = work.checkpoint.load() or {"step": np.array(0), "x": np.full((2, 3), flavour, np.float32)}
    for step in range(int(state["step"]), STEPS):
        state = {"step": np.array(step + 1), "x": state["x"] * 1.5 + 1}
        work.checkpoint.save(state)
    return {"latents": state["x"], "empty": np.zeros((0, 4), np.float16)}


def decode(latents: dict[str, NDArray[Any]]) -> Iterator[NDArray[np.uint8]]:
    seed = int(latents["latents"].sum() * 1000)
    for k in range(COUNT):
        yield np.random.default_rng(seed + k).integers(0, 256, (16, 32, 3), dtype=np.uint8)


def render(
    root: Path, report: Callable[[Event], None], flavour: int = 0, pause: Callable[[], object] = int
) -> Entry:
    """What the renderer does for one segment and its piece; `pause` happens under the lock."""
    store = Store(root, report)
    entry = store.entry(KEY)
    if entry is None:
        with store.work(KEY) as work:
            entry = store.entry(KEY)
            if entry is None:
                latents = work.latents()
                if latents is None:
                    latents = sample(work, flavour)
                    work.save_latents(latents)
                pause()
                work.write_frames(decode(latents), Fraction(15), COUNT)
                entry = work.publish(INPUTS, {"clip": "window"})
    made = entry
    piece = store.make_piece(PIECE_KEY, lambda path: encode(path, made), PIECE_INPUTS)
    store.remember_film(root / "film.mp4", root / "board.yaml", [KEY], [PIECE_KEY])
    assert piece.read_bytes().startswith(b"piece")
    return entry


def encode(path: Path, entry: Entry) -> None:
    assert path.suffix == ".mp4"
    with disk(path, "encoding"), entry.frames() as frames, path.open("xb") as file:
        file.write(b"piece" + b"".join(frame.tobytes() for frame in frames))


def digest(entry: Entry) -> str:
    """Of the bytes that must not depend on what happened on the way."""
    files = [entry.folder / "latents.safetensors", entry.folder / "frames.avi"]
    files.append(entry.folder.parents[2] / "pieces" / PIECE_KEY[:2] / PIECE_KEY / "piece.mp4")
    return " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def leftovers(root: Path) -> list[str]:
    """What a finished render must not leave in its work folders."""
    return [str(path.relative_to(root)) for path in (root / "work").rglob("*")]


def is_consistent(entry: Entry) -> bool:
    """Whether the frames are those of these latents."""
    with entry.frames() as frames:
        wanted = list(decode(entry.latents()))
        return all(np.array_equal(frame, want) for frame, want in zip(frames, wanted, strict=True))


class Disk:
    """Counts every touch of the disk that changes something, and lets `fault` happen at the n-th.

    Nothing is really synced; `unsynced` holds a handle of every file that a power cut would empty.
    """

    def __init__(self, n: int, fault: Callable[[Disk], None]) -> None:
        self.left = n
        self.fault = fault
        self.unsynced: dict[int, int] = {}

    def touch(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.fault(self)

    def open(self, path: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        if not set(mode) & set("wxa+"):
            return _open(path, mode, *args, **named)
        self.touch()
        file = Writer(io.FileIO(path, mode.replace("b", "")), self)
        self.unsynced[os.fstat(file.fileno()).st_ino] = os.dup(file.fileno())
        return file

    def close(self) -> None:
        """A touch that can fail; to die at it is to die before the next one."""
        if self.fault is full:
            self.touch()

    def fsync(self, fd: int) -> None:
        self.touch()
        self.unsynced.pop(os.fstat(fd).st_ino, None)


class Writer(io.BufferedWriter):
    def __init__(self, raw: io.FileIO, counted: Disk) -> None:
        super().__init__(raw)
        self.counted = counted

    def write(self, data: Any) -> int:
        half = len(data) // 2
        super().write(data[:half])
        self.counted.touch()
        return half + super().write(data[half:])

    def close(self) -> None:
        """Network file systems say at the end what they could not write."""
        if not self.closed:
            super().close()
            self.counted.close()


_open = io.open


@contextmanager
def faulty(n: int, fault: Callable[[Disk], None]) -> Iterator[Disk]:
    """A disk whose n-th touch goes wrong. Restores everything afterwards."""
    counted = Disk(n, fault)
    real: dict[str, Any] = {
        name: getattr(os, name) for name in ("rename", "replace", "mkdir", "unlink", "rmdir")
    }

    def touching(name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            counted.touch()
            return real[name](*args, **named)

        return call

    fsync, close = os.fsync, os.close

    def closing(fd: int) -> None:
        close(fd)
        counted.close()

    try:
        os.close = closing
        for name in real:
            setattr(os, name, touching(name))
        os.fsync = counted.fsync  # type: ignore[assignment]  # a fake of the same shape
        io.open = counted.open  # type: ignore[assignment]  # a fake of the same shape
        yield counted
    finally:
        io.open, os.fsync, os.close = _open, fsync, close
        for name, function in real.items():
            setattr(os, name, function)


def full(_: Disk) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(_: Disk) -> None:
    raise KeyboardInterrupt


def killed(_: Disk) -> None:
    os._exit(137)


def power_cut(counted: Disk) -> None:
    """Dies, and what was not synced lost its bytes: names live longer than content on most file systems."""
    for fd in counted.unsynced.values():
        os.ftruncate(fd, 0)
    os._exit(137)


def in_child(run: Callable[[], None]) -> int:
    """Run in a fork; its exit code (137 for a kill)."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - a fork must never go on as its parent
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def say(result: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def say_after(root: Path, n: int, code: int) -> None:
    """A plain render on what the fault left, and how it went; what it leaves is for `gc`."""
    heard = Heard()
    with faulty(0, full):
        entry = render(root, heard)
        temps = [name for name in leftovers(root) if ".tmp-" in name]
        store = Store(root, heard)
        (root / "board.yaml").touch()  # there is somebody who wants the film
        store.delete(store.garbage(time.time() + 8 * DAY))
    result = {"n": n, "code": code, "digest": digest(entry), "warnings": heard.warnings}
    say({**result, "left": temps + leftovers(root)})


def die_everywhere(base: Path, fault: Callable[[Disk], None]) -> None:
    """Die at the 1st, 2nd, ... touch of the disk until a render gets through; a plain one after each."""
    for n in count(1):
        code = in_child(partial(attempt, base / str(n), n, fault))
        assert code in (0, 137), code
        assert in_child(partial(say_after, base / str(n), n, code)) == 0
        if code == 0:
            break


def attempt(root: Path, n: int, fault: Callable[[Disk], None]) -> None:
    with faulty(n, fault):
        render(root, Heard())


def hammer(root: Path, seconds: float) -> None:
    """Two writers without a lock that make other latents each, killed over and over; says how it went."""
    chance = random.Random(1)
    counts = {"kills": 0, "finished": 0, "refused": 0, "seen": 0, "bad": 0}
    start = time.monotonic()
    writers: dict[int, int] = {}
    while (passed := time.monotonic() - start) < seconds or (
        min(counts["kills"], counts["finished"], counts["seen"]) <= 5 and passed < 120
    ):
        for flavour in {1, 2} - writers.keys():
            writers[flavour] = _start_writer(root, flavour)
        time.sleep(chance.uniform(0, 0.03))
        for flavour, pid in list(writers.items()):
            if chance.random() < 0.3:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                counts[WRITER_CODES[os.waitstatus_to_exitcode(status)]] += 1
                del writers[flavour]
        _look(root, counts, again=chance.random() < 0.5)
    for pid in writers.values():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    say(counts)


def _look(root: Path, counts: dict[str, int], *, again: bool) -> None:
    """What can be seen is whole at any moment; half the time it has to be made once more."""
    heard = Heard()
    entry = Store(root, heard).entry(KEY)
    if entry is not None:
        counts["seen"] += 1
        counts["bad"] += not is_consistent(entry)
        if again:
            entry.folder.rename(root / f"seen-{counts['seen']}")
    counts["bad"] += len(heard.warnings)


def _start_writer(root: Path, flavour: int) -> int:
    pid = os.fork()
    if pid == 0:
        files._try = no_locks
        code = 1
        try:
            render(root, Heard(), flavour, pause=lambda: time.sleep(0.002))
            code = 0
        except RenderError:  # the entry went away under its piece
            code = 2
        finally:
            os._exit(code)
    return pid


def no_locks(lock: object, timeout: float = 0, given_up: object = None) -> files.LockState:
    """A file system without locks."""
    return files.LockState.UNSUPPORTED


def main(what: str, base: str, *rest: str) -> None:
    if what == "hammer":
        hammer(Path(base), float(rest[0]))
    elif what == "render":
        for event in _rendered(Path(base), *rest):
            say(event)
    else:
        die_everywhere(Path(base), {"killed": killed, "power_cut": power_cut}[what])


def _rendered(root: Path, gate: str = "") -> Iterator[dict[str, object]]:
    """A render that holds the lock until a file named `gate` is there."""
    yield {"started": os.getpid()}

    def pause() -> None:
        say({"held": KEY})
        while gate and not Path(gate).exists():
            time.sleep(0.01)

    entry = render(root, lambda event: say({"warning": str(event)}), pause=pause)
    yield {"digest": digest(entry)}


if __name__ == "__main__":
    main(*sys.argv[1:])
