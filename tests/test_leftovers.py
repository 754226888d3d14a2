"""What a kill, a full disk or a lock that cannot be had leaves behind: nothing that is not swept."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from svi_story.cache.layout import Layout
from svi_story.cache.store import Store
from svi_story.errors import TransientError
from svi_story.files import LockState, atomic_file, lock_if_free, locked, remove_stale_temps, temp_name

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Any]
    Write = Callable[..., Path]

DAY = 24 * 3600
KEY = "0" * 64

KILLED_EVERYWHERE = """
import os, sys
from itertools import count
from svi_story.cli.app import app
import svi_story.cli.render, svi_story.render.runner, svi_story.review.film, svi_story.bundle.pack
import svi_story.export.write, av, opentimelineio
from svi_story.cut.ffmpeg import import_moviepy
import_moviepy()

def attempt(words, n):
    left = [n]
    def dying(move):
        def call(*places, **options):
            left[0] -= 1
            if left[0] == 0:
                os._exit(137)
            return move(*places, **options)
        return call
    for name in ("rename", "replace", "link"):
        setattr(os, name, dying(getattr(os, name)))
    os.dup2(os.open("told", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(2, 1)
    try:
        app(words)
    except SystemExit as ended:
        os._exit(ended.code)

kills = 0
for words in sys.stdin.read().splitlines():
    for n in count(1):
        pid = os.fork()
        if pid == 0:
            attempt(words.split(), n)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != 137:
            assert code == 0, (words, n, code, open("told").read())
            break
        kills += 1
print(kills)
"""
COMMANDS = """new film --template minimal
new lone.yaml
preview board.yaml
render board.yaml --engine animatic
review board.yaml --engine animatic
export board.yaml --engine animatic --to otio --media prores
export board.yaml --engine animatic --to srt --as captions.srt
export board.yaml --engine animatic --to bundle --entries
import prompts.txt -r anchor.png -o imported.yaml
validate renders/board.zip --cache renders/.cache"""
KNOWN = (
    r"CACHEDIR\.TAG|(films|ledger)/[0-9a-f]{64}\.json|locks/[0-9a-f]{64}\.lock",
    r"entries/../[0-9a-f]{64}/(entry\.json|frames\.avi|latents\.safetensors)",
    r"pieces/../[0-9a-f]{64}/(piece\.json|piece\.mp4)",
    r"runs/[0-9-]{15}-[0-9a-f]{6}/events\.jsonl",
    r"bundles/[0-9a-f]{64}/(bundle\.json|board/board\.yaml|files/[^/]+|cache/.+)",
)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_a_kill_at_every_rename_leaves_nothing_that_is_not_swept(write_board: Write, tmp_path: Path) -> None:
    write_board(clips=[{"prompt": "A cat is running.", "caption": "Run"}])
    Path("prompts.txt").write_text('["A cat is running."]', "utf-8")
    before = files_below(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE],
        input=COMMANDS,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 15
    machine = Path("home/.cache/svi-story")
    for folder in (tmp_path, machine, *(path for path in tmp_path.iterdir() if path.is_dir())):
        remove_stale_temps(folder)  # as the next command that writes there does
    cache = Path("renders/.cache")
    store = Store(cache, lambda _event: None)
    store.delete(store.garbage(time.time() + 8 * DAY))
    made = {path for path in files_below(tmp_path) - before if not path.startswith("renders/.cache/")}
    images = {path for path in made if path.startswith(("images/", "film/images/"))}
    assert made - images == {
        *("film/svi-story.toml", "film/storyboard.schema.json", "film/renders/.gitignore"),
        *("storyboard.schema.json", "home/.cache/svi-story/hashes.json"),
        "home/.cache/svi-story/calibration.json",
        *("told", "film/film.yaml", "lone.yaml", "imported.yaml", "captions.srt", "renders/board.mp4"),
        *(
            "renders/board.json",
            "renders/board.preview.png",
            "renders/board.zip",
            "renders/board.review.html",
        ),
        *("renders/board.otio", "renders/board.media/clip-01.prores.mov"),
        "renders/board.media/clip-01.prores.mov.json",
    }
    unknown = [path for path in files_below(cache) if not re.fullmatch("|".join(KNOWN), path)]
    assert unknown == []
    assert not list((cache / "work").iterdir())


def test_gc_knows_every_place_of_a_temporary_file(tmp_path: Path) -> None:
    """Those of other hosts, too; but in the work of somebody who is at it."""
    layout = Layout(tmp_path)
    layout.create()
    bundle = layout.bundle(KEY)
    film = {"film": tmp_path / "film.mp4", "board": tmp_path / "board.yaml"}
    film["board"].touch()
    store = Store(tmp_path, lambda _event: None)
    store.remember_film(film["film"], film["board"], [KEY, "1" * 64], [])
    Layout(bundle / "cache").create()
    Store(bundle / "cache", lambda _event: None).remember_film(film["film"], film["board"], [KEY], [])
    places = [
        tmp_path,
        *(tmp_path / name for name in ("films", "bundles", "set-aside", "locks", "embeddings")),
    ]
    places += [layout.work(KEY), bundle, bundle / "files", bundle / "cache", bundle / "cache/work" / KEY]
    temps = [place / ".tmp-otherhost-1-0123abcd-x" for place in places]
    temps += [tmp_path / "tmpab_cd123", layout.work("1" * 64) / ".tmp-otherhost-1-0123abcd"]
    for temp in temps:
        temp.parent.mkdir(parents=True, exist_ok=True)
        temp.touch()
    (layout.work(KEY) / "latents.safetensors").touch()
    empty = layout.work("2" * 64)
    empty.mkdir()
    later = time.time() + 8 * DAY
    with lock_if_free(layout.lock(KEY)):
        assert not {layout.work(KEY) / temps[0].name} & {item.path for item in store.garbage(later)}
    assert store.garbage(time.time()) == []
    deleted = {item.path for item in store.delete(store.garbage(later))}
    assert {empty, *temps[:-1], layout.work("1" * 64)} <= deleted
    assert not [path for path in tmp_path.rglob("*") if path in temps]
    assert (layout.work(KEY) / "latents.safetensors").exists()


def test_temporary_files_and_folders_of_the_dead_are_swept(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    mine = temp_name()
    other = mine.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    for name in (mine, other):
        (tmp_path / f"{name}-folder").mkdir()
        (tmp_path / f"{name}-folder/file").touch()
        (tmp_path / f"{name}-file").touch()
    remove_stale_temps(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{mine}-folder", f"{mine}-file"}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EIO])
def test_a_lock_that_cannot_be_had_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock_if_free(tmp_path / "a.lock") as lock_state:
        assert lock_state is LockState.UNSUPPORTED
    with locked(tmp_path / "b.lock", lambda: None) as lock_state:
        assert lock_state is LockState.UNSUPPORTED
    (tmp_path / "c.lock").touch()
    with lock_if_free(tmp_path / "c.lock"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["c.lock"]


def test_no_work_folder_is_left_where_nothing_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk is full before the first byte, or has no locks."""
    store = Store(tmp_path, lambda _event: None)
    monkeypatch.setattr("svi_story.files._try", lambda *_: LockState.UNSUPPORTED)
    with store.work(KEY):
        pass
    assert not store.layout.work(KEY).exists()
    mkdir = os.mkdir

    def refuse(path: Any, *rest: Any) -> None:
        if ".tmp-" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *rest)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(TransientError), store.work(KEY):
        pass
    assert not store.layout.work(KEY).exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_on_closing_is_the_disks_and_comes_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target = tmp_path / "film.mp4"
    target.write_bytes(b"before")
    close, renamed, refused = os.close, [], []

    def write() -> None:
        with atomic_file(target) as temporary:
            temporary.write_bytes(b"after")
            renamed.append(temporary)

    def refuse(descriptor: int) -> None:
        close(descriptor)
        refused.append(target.read_bytes())
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "close", refuse)
    with pytest.raises(TransientError, match=os.strerror(code)):
        write()
    assert refused[0] == b"before"
    assert target.read_bytes() == b"before"
    assert not renamed[0].exists()


def test_an_error_of_the_system_is_never_a_bug(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Wherever it comes from: it is told as one, and tried again where it may pass."""
    said: list[int] = []

    def refuse(*_: object) -> None:
        said.append(1)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("svi_story.render.film.recipe_of", refuse)
    monkeypatch.setattr("svi_story.render.runner.wait", lambda _seconds: None)
    ended = svi_story("render", write_board(), "--engine", "animatic", "--retries", "1")
    assert ended.code == 1
    assert "quota" in ended.err.lower()
    assert "free some space" in ended.err
    assert "bug" not in ended.err
    assert len(said) == 2
