"""Anything may lie where a file is expected: nothing hangs, fills the memory or ends in a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest
from PIL import Image
from typer.testing import CliRunner

from svi_story import files
from svi_story.cli.app import app
from svi_story.engines.svi.identity import sha256_of
from svi_story.engines.svi.text import load_tokenizer
from svi_story.engines.svi.weights.architecture import read_config
from svi_story.engines.svi.weights.hashes import RECORDS, DownloadRecords
from svi_story.engines.svi.weights.tensors import read_safetensors
from svi_story.errors import InputError
from svi_story.files import UnfitError, read_chunks, read_regular, sha256_file
from svi_story.plan.fingerprints import Fingerprints
from svi_story.settings import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Ended

    Run = Callable[..., Ended]
    Put = Callable[[Path], None]

HANGS = 120
"""Seconds after which something waits for ever."""
KEY = "ab" * 32


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def unix_socket(path: Path) -> None:
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as unix:  # the name of a socket is short
        unix.bind("s")
        Path("s").rename(path.name)


def empty(path: Path) -> None:
    path.touch()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


ODD = (pipe, endless, folder, dangling, loop, unix_socket, empty, huge)
HANGING = (pipe, endless, huge)
"""What costs most when it is read."""


@contextmanager
def hanging_fails() -> Iterator[None]:
    def fail(*_: object) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with hanging_fails():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a board, and all that every command leaves of it."""
    place = tmp_path_factory.mktemp("finished")
    with chdir(place):
        Image.new("RGB", (64, 64), "teal").save("anchor.png")
        clip = {"prompt": "The fog drifts.", "frames": 5, "caption": "Fog"}
        board = {"version": 1, "reference": "anchor.png", "resolution": "64x64", "clips": [clip]}
        board |= {"engine": {"name": "animatic", "max_frames": 5}, "cut": {"captions": "srt"}}
        Path("board.yaml").write_text(json.dumps(board))
        for words in (["render"], ["preview"], ["review"], ["export", "--to", "srt"]):
            done = CliRunner().invoke(app, [*words, "board.yaml"])
            assert done.exit_code == 0, done.stderr
    return place


@pytest.fixture
def ours(finished: Path, tmp_path: Path) -> list[Path]:
    """A copy of it under the current folder; the files that commands left."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return sorted(path for path in Path("renders").rglob("*") if path.is_file())


def used(run: Run) -> dict[str, Ended]:
    """Every command that looks at what is there."""
    boards = ("status", "plan", "render", "review", "preview")
    done = {name: run(name, "board.yaml") for name in boards}
    done |= {f"cache {name}": run("cache", name) for name in ("verify", "ls")}
    done["cache gc"] = run("cache", "gc", "--yes")
    for name, ended in done.items():
        assert ended.code in (0, 1, 2), (name, ended)
        assert "bug" not in ended.err, (name, ended.err)
        if ended.code:  # who has to do something is told what
            words = ("move it away", "move away", "quarantine", "run `svi-story")
            assert any(word in ended.err for word in words), (name, ended.err)
    return done


def render_as_told(run: Run) -> None:
    """Render after removing what each refusal says is in the way."""
    for _ in range(8):
        ended = run("render", "board.yaml")
        if ended.code == 0:
            return
        told = [
            Path(path) for path in re.findall(r"^(renders/[^:]+): .*move it away", ended.err, re.MULTILINE)
        ]
        assert told, ended.err
        for path in told:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    raise AssertionError(ended.err)


def instead(path: Path, put: Put) -> None:
    path.unlink()
    put(path)


@pytest.mark.parametrize("put", ODD, ids=lambda put: put.__name__)
def test_odd_things_in_the_place_of_every_file(
    put: Put, ours: list[Path], finished: Path, svi_story: Run
) -> None:
    for path in ours:
        instead(path, put)
    used(svi_story)
    for path in Path("renders").rglob("*"):
        if put is folder and path.is_dir() and path in ours:
            path.rmdir()  # as was told
    render_as_told(svi_story)
    film = Path("renders/board.mp4")
    assert stat.S_ISREG(film.lstat().st_mode)
    assert film.read_bytes() == (finished / film).read_bytes()


@pytest.mark.parametrize("put", HANGING, ids=lambda put: put.__name__)
def test_odd_things_in_the_place_of_one_file(
    put: Put, ours: list[Path], finished: Path, svi_story: Run
) -> None:
    film = (finished / "renders/board.mp4").read_bytes()
    for path in ours:
        instead(path, put)
        for name in ("status", "render"):
            ended = svi_story(name, "board.yaml")
            assert "bug" not in ended.err, (path, ended)
            assert ended.code == 0 or "move it away" in ended.err, (path, ended)
        render_as_told(svi_story)
        assert Path("renders/board.mp4").read_bytes() == film, path
        svi_story("cache", "verify")
        shutil.rmtree("renders")
        shutil.copytree(finished / "renders", "renders")


@pytest.mark.parametrize("put", ODD, ids=lambda put: put.__name__)
def test_odd_things_in_the_place_of_work_under_way(
    put: Put, ours: list[Path], finished: Path, svi_story: Run
) -> None:
    cache = Path("renders/.cache")
    key = next(path for path in ours if path.name == "entry.json").parent.name
    for kind in ("entries", "pieces"):
        shutil.rmtree(cache / kind)
    Path("renders/board.mp4").unlink()
    for place in (
        cache / f"work/{key}/checkpoint.safetensors",
        cache / f"work/{key}/latents.safetensors",
        cache / f"work/{KEY}",
        cache / f"embeddings/{KEY}.safetensors",
        cache / f"set-aside/{key}-1/reason.txt",
        cache / f"set-aside/{key}-2",
        cache / f"locks/{KEY}.lock",
        cache / f"films/{KEY}.json",
        cache / f"bundles/{KEY}/manifest.json",
        cache / f"entries/{KEY[:2]}/{KEY}",
        cache / f"pieces/{KEY[:2]}/{KEY}/piece.json",
        cache / ".tmp-elsewhere-1-abcdef01",
        Path("renders/board.partial.mp4"),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        put(place)
        os.utime(place, (0, 0), follow_symlinks=False)
    ended = used(svi_story)
    assert ended["render"].code == 0, ended["render"]
    assert ended["cache gc"].code == 0
    film = Path("renders/board.mp4")
    assert film.read_bytes() == (finished / film).read_bytes()


@pytest.mark.parametrize("put", ODD, ids=lambda put: put.__name__)
def test_captions_that_are_no_file_are_kept(put: Put, ours: list[Path], svi_story: Run) -> None:
    captions = Path("renders/board.srt")
    assert captions in ours
    instead(captions, put)
    Path("renders/board.json").unlink()
    before = captions.lstat()
    ended = svi_story("render", "board.yaml")
    assert captions.lstat().st_ino == before.st_ino
    assert "board.srt: " in ended.err
    if put in (empty, huge):
        assert ended.code == 0, ended.err
        assert "is kept; remove it to get the board's captions" in ended.err
    else:
        assert ended.code == 2
        render_as_told(svi_story)
        assert captions.read_text().startswith("1\n")


@pytest.mark.parametrize("name", ["board.mp4", "board.srt"])
def test_a_file_of_another_size_than_ours_is_not_hashed(
    name: str, ours: list[Path], svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("renders", name)
    assert path in ours
    instead(path, huge)
    shutil.rmtree("renders/.cache/ledger")
    real = files.chunks_of

    def chunks_of(path: Path, file: BinaryIO, chunk: int = files.CHUNK) -> Iterator[bytes]:
        assert os.fstat(file.fileno()).st_size < 2**30, f"{path} is read to its end"
        return real(path, file, chunk)

    monkeypatch.setattr(files, "chunks_of", chunks_of)
    ended = svi_story("render", "board.yaml")
    assert "bug" not in ended.err, ended.err
    assert ended.code == (2 if name == "board.mp4" else 0)  # captions changed by hand are kept
    assert path.stat().st_size == 10 * 2**30


def test_a_folder_in_the_place_of_the_film_is_told(ours: list[Path], svi_story: Run) -> None:
    film = Path("renders/board.mp4")
    assert film in ours
    instead(film, folder)
    ended = svi_story("render", "board.yaml")
    assert ended.code == 2
    assert "board.mp4: board.yaml would write its film here, but this is a folder; move it away" in ended.err
    assert film.is_dir()


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "[]", '{"format": 1, "rows": [{"seconds": [1e999]}]}'])
def test_damaged_notes_cost_time_alone(text: str, ours: list[Path], svi_story: Run) -> None:
    for name in ("hashes.json", "calibration.json"):
        path = user_cache() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert svi_story("plan", "board.yaml", "--json").code == 0
    assert svi_story("render", "board.yaml").code == 0


@pytest.mark.parametrize("put", [put for put in ODD if put is not empty], ids=lambda put: put.__name__)
def test_only_regular_files_of_some_size_are_read(put: Put, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    put(path)
    with pytest.raises(OSError, match="odd"):
        read_regular(path, 10**9)
    if put is not huge:
        with pytest.raises(OSError, match="odd"):
            sha256_file(path)
        with pytest.raises(InputError):
            Fingerprints(tmp_path / "memo.json").file(path)


@pytest.mark.parametrize("put", [pipe, endless])
def test_what_is_swapped_while_it_is_opened_is_not_read(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swapped"
    path.write_text("here")
    was = path.stat()
    instead(path, put)
    monkeypatch.setattr(Path, "stat", lambda _path: was)
    with pytest.raises(UnfitError, match="is not a regular file"):
        read_regular(path, 10)


@pytest.mark.parametrize("by", [1, 100, -1])
def test_what_changes_while_it_is_read_is_refused(
    by: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(1000))
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        if os.path.samestat(status, path.stat()):
            os.truncate(path, status.st_size + by)
        return status

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(UnfitError, match="changed while it was read"):
        read_regular(path, 10**6)
    with pytest.raises(UnfitError, match="changed while it was read"):
        list(read_chunks(path))


@pytest.mark.parametrize("put", [put for put in ODD if put is not dangling], ids=lambda put: put.__name__)
def test_weights_that_are_no_files(put: Put, tmp_path: Path) -> None:
    path = tmp_path / RECORDS
    put(path)
    assert DownloadRecords.load(tmp_path).known == {}
    readers = (read_safetensors, read_config, load_tokenizer)
    for read in (*readers, sha256_of) if put not in (huge, empty) else readers:
        with pytest.raises(InputError, match=RECORDS):
            read(path)


def test_limits_are_told(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(1001))
    assert len(read_regular(path, 1001)) == 1001
    with pytest.raises(UnfitError, match="is larger than 1,000 bytes"):
        read_regular(path, 1000)
