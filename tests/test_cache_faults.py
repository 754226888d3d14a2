"""Whatever goes wrong with the disk, at whatever moment: a plain run afterwards makes the same bytes."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cache_scenario import (
    KEY,
    PIECE_KEY,
    Disk,
    Heard,
    digest,
    faulty,
    full,
    interrupted,
    is_consistent,
    leftovers,
    render,
)

from svi_story.cache.store import Store
from svi_story.errors import RenderError
from svi_story.files import disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCENARIO = Path(__file__).with_name("cache_scenario.py")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an undisturbed render."""
    return digest(render(tmp_path_factory.mktemp("undisturbed"), Heard()))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a thing: hundreds of renders follow each other."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if os.access(place, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def run(*arguments: object, before: tuple[str, ...] = ()) -> list[dict[str, object]]:
    """What the scenario says as a program."""
    command = [*before, sys.executable, str(SCENARIO), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(SCENARIO.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("fault", [full, interrupted])
def test_an_error_at_every_touch_of_the_disk(
    memory: Path, wanted: str, fault: Callable[[Disk], None]
) -> None:
    raised = 0
    for n in count(1):
        root = memory / str(n)
        heard = Heard()
        with faulty(n, fault) as counted:
            try:
                render(root, heard)
            except (RenderError, KeyboardInterrupt) as error:
                raised += 1
                told = "No space left on device; free some space" in str(error) and str(root) in str(error)
                assert told or fault is interrupted
        with faulty(0, fault):
            entry = render(root, heard)
        assert digest(entry) == wanted
        assert heard.warnings == []
        assert not [name for name in leftovers(root) if ".tmp-" in name]
        if counted.left > 0:
            break
    assert raised > 60


@pytest.mark.parametrize("death", [pytest.param("killed", marks=pytest.mark.slow), "power_cut"])
def test_death_at_every_touch_of_the_disk(memory: Path, wanted: str, death: str) -> None:
    """Nothing is found damaged afterwards, even when everything that was not synced is lost."""
    runs = run(death, memory)
    assert len(runs) > 80
    assert [result["code"] for result in runs] == [137] * (len(runs) - 1) + [0]
    for result in runs:
        assert (result["digest"], result["warnings"], result["left"]) == (wanted, [], []), result


def test_two_writers_without_a_lock_and_kills(tmp_path: Path) -> None:
    [counts] = run("hammer", tmp_path / "cache", 3)
    assert counts["bad"] == 0
    assert min(int(str(counts[name])) for name in ("kills", "finished", "seen")) > 5, counts


def test_kill_after_kill(tmp_path: Path, wanted: str) -> None:
    """Killed at any moment, from outside, until one gets through."""
    root = tmp_path / "cache"
    program = f"""
import sys, os, time
from cache_scenario import *
for n in range(40):
    pid = os.fork()
    if pid == 0:
        render(Path({str(root)!r}), Heard())
        os._exit(0)
    time.sleep(n / 1000)
    os.kill(pid, {int(signal.SIGKILL)})
    os.waitpid(pid, 0)
"""
    paths = f"{SCENARIO.parent}:{SCENARIO.parents[1]}"
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment)
    heard = Heard()
    assert digest(render(root, heard)) == wanted
    assert heard.warnings == []


def sizes() -> Iterator[int]:
    """From nothing to more than the largest file, most where the small ones end."""
    yield from range(0, 1200, 100)
    yield from range(1200, 22_000, 1500)


def test_files_that_may_not_grow(memory: Path, wanted: str) -> None:
    """The kernel's own refusal, in libav's writes too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    for size in sizes():
        root = memory / str(size)
        heard = Heard()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            render(root, heard)
        except RenderError as error:
            refused += 1
            assert "File too large" in str(error)  # noqa: PT017 - which size suffices is not known
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert digest(render(root, heard)) == wanted
        assert heard.warnings == []
    assert refused > 10


def small_disk(program: str, kilobytes: int, folder: Path) -> str:
    """What a program prints whose folder `disk` is a file system of that size, of its own."""
    mount = shutil.which("unshare")
    if mount is None:
        pytest.skip("no unshare: no file system of one's own")
    script = f'mount -t tmpfs -o size={kilobytes}k none "$0" && exec "$1" -c "$2"'
    command = [mount, "--mount", "--map-root-user", "sh", "-c", script, str(folder), sys.executable, program]
    paths = f"{SCENARIO.parent}:{SCENARIO.parents[1]}"
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    if done.returncode != 0 and "Traceback" not in done.stderr:
        pytest.skip(f"no file system of one's own: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL_DISK = """
import os
from cache_scenario import *
base = Path({folder!r})
for free in range(0, 120, 4):
    root = base / str(free)
    ballast = base / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    os.truncate(ballast, max(0, ballast.stat().st_size - free * 1024))
    heard = Heard()
    try:
        render(root, heard)
    except RenderError as error:
        print("refused", str(root) in str(error) and "No space left on device; free some space" in str(error))
        store = Store(root, heard)
        store.delete(store.garbage(time.time() + 8 * DAY))
    ballast.unlink()
    print("made", digest(render(root, heard)), heard.warnings)
    import shutil; shutil.rmtree(root)
"""


def test_a_full_disk(tmp_path: Path, wanted: str) -> None:
    """Whatever room is left: a clear error or the whole thing, and a plain run once there is room."""
    lines = small_disk(FULL_DISK.format(folder=str(tmp_path)), 2000, tmp_path).splitlines()
    assert lines.count("refused True") > 5
    assert "refused False" not in lines
    assert {line for line in lines if line.startswith("made")} == {f"made {wanted} []"}


READ_ONLY = """
import subprocess
from cache_scenario import *
root = Path({folder!r}) / "cache"
render(root, Heard())
subprocess.run(["mount", "-o", "remount,ro", {folder!r}], check=True)
heard = Heard()
store = Store(root, heard)
print(digest(store.entry(KEY)))
print(len(list(store.usage())), len(store.garbage(time.time() + 1e9)))
for use in (lambda: store.work("0" * 64).__enter__(), lambda: store.quarantine(KEY, "forced"),
            lambda: store.delete(store.garbage(time.time() + 1e9))):
    try:
        use()
    except RenderError as error:
        print("Read-only file system; choose another cache with --cache" in str(error))
print(heard.warnings)
other = {{"segment": KEY, "crf": 30}}
piece = store.make_piece(key_of(other), lambda path: encode(path, store.entry(KEY)), other)
store.remember_film(root / "other.mp4", root / "board.yaml", [KEY], [key_of(other)])
print(piece.read_bytes()[:5], store.piece(key_of(other)) == piece)
del store
print(piece.exists(), heard.warnings)
"""


def test_a_read_only_cache_can_be_used_but_not_filled(tmp_path: Path, wanted: str) -> None:
    lines = small_disk(READ_ONLY.format(folder=str(tmp_path)), 4000, tmp_path).splitlines()
    assert lines[0] == wanted
    assert lines[2:] == ["True", "True", "True", "[]", "b'piece' True", "False []"]


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.EACCES, "make it writable for you"),
        (errno.EROFS, "choose another cache"),
        (errno.EDQUOT, "free some space"),
        (errno.EIO, "check the disk"),
        (errno.EEXIST, "move away"),
    ],
)
def test_every_refusal_has_a_cure(code: int, cure: str) -> None:
    with pytest.raises(RenderError) as raised, disk(Path("/a/b"), "writing"):
        raise OSError(code, os.strerror(code))
    text = str(raised.value)
    assert text.startswith("/a/b: writing failed: ")
    assert cure in text
    assert text.endswith("everything rendered so far is kept")


def test_what_cannot_be_quarantined_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render(tmp_path, Heard())
    heard = Heard()
    store = Store(tmp_path, heard)
    (store.folder(KEY) / "frames.avi").write_bytes(b"")

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        assert store.entry(KEY) is None
        assert "could not be quarantined: " in heard.warnings[0]
        assert [item.problem != "" for item in store.verify()] == [True, False]


def test_what_may_not_be_read_is_an_error_and_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague's umask or a lack of file handles is no reason to set anything aside."""
    render(tmp_path, Heard())
    heard = Heard()
    store = Store(tmp_path, heard)
    for code in (errno.EACCES, errno.EMFILE):

        def refuse(*_: object, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr("svi_story.cache.entry.sha256_file", refuse)
            with pytest.raises(RenderError, match="reading the cache failed"):
                store.entry(KEY)
            assert [bool(item.problem) for item in store.verify()] == [True, True]
    assert heard.warnings == []
    assert store.entry(KEY)
    assert store.piece(PIECE_KEY)


def test_a_lost_block_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render(tmp_path, Heard())
    heard = Heard()
    store = Store(tmp_path, heard)

    def lost(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("svi_story.cache.entry.sha256_file", lost)
        assert store.entry(KEY) is None
    assert "Input/output error" in heard.warnings[0]
    assert is_consistent(render(tmp_path, heard))


def test_a_rename_that_worked_and_said_it_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    """A network file system may send a rename twice, and answer the second: it is not there."""
    rename = os.rename

    def twice(source: Path, target: Path) -> None:
        rename(source, target)
        raise OSError(errno.ENOENT, "No such file or directory")

    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", twice)
        assert digest(render(tmp_path, heard)) == wanted
    assert heard.warnings == []


def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    """As on some network file systems."""
    fsync = os.fsync

    def picky(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", picky)
    assert digest(render(tmp_path, Heard())) == wanted


def test_deleting_can_die_anywhere(memory: Path) -> None:
    """A half-deleted entry is never taken for whole, nor set aside as damaged: it is gone, or it is there."""
    for n in count(1):
        root = memory / str(n)
        heard = Heard()
        with faulty(0, full):
            render(root, heard)
        store = Store(root, heard)
        items = store.garbage(time.time() + 8 * 24 * 3600)
        with faulty(n, interrupted) as counted, suppress(KeyboardInterrupt):
            store.delete(items)
        entry, piece = store.entry(KEY), store.piece(PIECE_KEY)
        assert entry is None or is_consistent(entry)
        assert piece is None or piece.exists()
        assert heard.warnings == []
        store.delete(store.garbage(time.time() + 8 * 24 * 3600))
        assert not [path for path in root.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"]
        if counted.left > 0:
            break
    assert n > 10
