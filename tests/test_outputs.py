"""No command writes over a file that it reads, or that svi-story did not write."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sound_files import wav_bytes

from svi_story.cache.outputs import Outputs
from svi_story.cache.store import Store
from svi_story.cut.mp4 import add_xmp, read_xmp
from svi_story.engines.svi.weights.locate import ModelFolders
from svi_story.errors import InputError, RenderError
from svi_story.render.smoke import RenderedClip, SmokeTest, save_pictures
from svi_story.review.contact_sheet import is_sheet
from svi_story.settings import user_cache
from svi_story.storyboard.files import write_new

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

RENDERS = Path("renders")
LEDGER = RENDERS / ".cache/ledger"
MINE = b"the user's own file"
BOARD: dict[str, Any] = {
    "engine": {"name": "animatic", "max_frames": 13},
    "clips": [
        {"id": "sea", "prompt": "The sea is rising.", "frames": 9, "caption": "Rain"},
        {"id": "fog", "prompt": "The fog is drifting.", "frames": 9},
    ],
    "cut": {"captions": "srt"},
}
OTIO = ("export", "--to", "otio", "--media", "prores")
COMMANDS = {
    "board.mp4": ("render",),
    "board.json": ("render",),
    "board.partial.mp4": ("render",),
    "board.srt": ("render",),
    "board.preview.png": ("preview",),
    "board.review.html": ("review",),
    "board.otio": OTIO,
    "board.media/sea.prores.mov": OTIO,
    "board.media/fog.prores.mov.json": OTIO,
    "board.zip": ("export", "--to", "bundle"),
}
"""Every file that lies beside a film, and the command that writes it."""
TARGETS = [*COMMANDS.items(), ("board.srt", ("export", "--to", "srt"))]


@pytest.fixture
def board(write_board: Write) -> Path:
    return write_board(**BOARD)


@pytest.fixture
def run(svi_story: Run) -> Run:
    def on_board(command: tuple[str, ...], *more: object) -> Ended:
        return svi_story(command[0], "board.yaml", *command[1:], *more)

    return on_board


@pytest.fixture
def written(board: Path, run: Run) -> dict[str, bytes]:
    """Everything that can be written for a board; the film so far is gone."""
    for command in dict.fromkeys(COMMANDS.values()):
        ended = run(command)
        assert ended.code == 0, ended.err
    names = [name for name in COMMANDS if name != "board.partial.mp4"]
    return {name: (RENDERS / name).read_bytes() for name in names}


def put(path: Path, kind: str = "file") -> None:
    """Something of the user's under a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.write_bytes(MINE)
        return
    Path("elsewhere").mkdir(exist_ok=True)
    own = Path("elsewhere/own" + path.suffix).absolute()
    if kind != "broken link":
        own.write_bytes(MINE)
    if kind == "hard link":
        path.hardlink_to(own)
    else:
        path.symlink_to(own)


def tree(folder: Path) -> dict[str, bytes | str]:
    """What lies below a folder, without the cache."""
    found: dict[str, bytes | str] = {}
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != ".cache"]
        for path in (Path(top, name) for name in files):
            found[str(path)] = str(path.readlink()) if path.is_symlink() else path.read_bytes()
    return found


@pytest.mark.parametrize("kind", ["file", "link", "broken link", "hard link"])
@pytest.mark.parametrize(("name", "command"), TARGETS)
def test_a_file_of_the_user_is_refused_before_anything_is_written(
    board: Path, svi_story: Run, run: Run, name: str, command: tuple[str, ...], kind: str
) -> None:
    if command[0] in ("review", "export"):
        assert svi_story("render", board, "--only", "sea", "--only", "fog").code == 0
    put(RENDERS / name, kind)
    before = tree(Path())
    ended = run(command)
    assert ended.code == 2, ended.err
    assert f"renders/{name}: " in ended.err
    assert "board.yaml would write " in ended.err
    assert "Traceback" not in ended.err
    assert tree(Path()) == before
    if command[0] == "render":
        assert not (RENDERS / ".cache/entries").exists(), "nothing was rendered"


def test_every_command_in_a_folder_full_of_the_user_s_files(board: Path, svi_story: Run, run: Run) -> None:
    for name in COMMANDS:
        put(RENDERS / name)
    put(RENDERS / "board.preview-2.png")
    put(Path("film"))
    put(Path("prompt.yaml"))
    Path("prompt.txt").write_text("prompts = ['The sea.']")
    before = tree(Path())
    for command in dict.fromkeys(command for _, command in TARGETS):
        assert run(command).code == 2
    assert svi_story("new", "film").code == 2
    assert svi_story("import", "prompt.txt", "-r", "anchor.png").code == 2
    assert svi_story("import", "prompt.txt", "-r", "anchor.png", "-o", "board.yaml").code == 2
    assert tree(Path()) == before


def test_all_that_is_wrong_is_told_at_once_and_other_boards_are_rendered(
    write_board: Write, svi_story: Run
) -> None:
    for name in ("a", "b"):
        write_board(f"storyboards/{name}.yaml", reference="../anchor.png", **BOARD)
    put(RENDERS / "a.mp4")
    put(RENDERS / "a.srt")
    ended = svi_story("render", "storyboards", "--json")
    told = [json.loads(line) for line in ended.out.splitlines()]
    (refused,) = (event for event in told if event["event"] == "board_refused")
    assert refused["board"] == "storyboards/a.yaml"
    assert [problem.partition(":")[0] for problem in refused["problems"]] == [
        "renders/a.mp4",
        "renders/a.srt",
    ]
    assert ended.code == 1
    assert (RENDERS / "b.mp4").exists()
    assert (RENDERS / "a.mp4").read_bytes() == (RENDERS / "a.srt").read_bytes() == MINE


def test_a_board_that_is_called_like_its_film_s_record(write_board: Write, svi_story: Run) -> None:
    board = write_board(**BOARD).rename("film.json")
    before = board.read_bytes()
    ended = svi_story("render", board, "-o", ".")
    assert ended.code == 2
    assert "film.json: film.json would write the film's record over it, and film.json reads it" in ended.err
    assert board.read_bytes() == before


@pytest.mark.parametrize("way", [".", "link"])
def test_music_that_is_called_like_the_film(write_board: Write, svi_story: Run, way: str) -> None:
    Path("link").symlink_to(".")
    Path("board.mp4").write_bytes(wav_bytes(bytes(192_000)))
    board = write_board(**{**BOARD, "cut": {"audio": "board.mp4"}})
    before = Path("board.mp4").read_bytes()
    ended = svi_story("render", board, "-o", way)
    assert ended.code == 2
    assert "board.yaml would write its film over it, and" in ended.err, ended.err
    assert "reads it as its music (" in ended.err
    assert Path("board.mp4").read_bytes() == before


def test_what_svi_story_wrote_is_not_written_over_where_it_is_read(
    write_board: Write, svi_story: Run, board: Path
) -> None:
    """A contact sheet is the reference now, under another name; a bundle is packed beside itself."""
    assert svi_story("preview", board).code == 0
    sheet = RENDERS / "board.preview.png"
    Path("sheet.png").hardlink_to(sheet)
    ended = svi_story("preview", write_board(**{**BOARD, "reference": "sheet.png"}))
    assert ended.code == 2
    assert "reads it as its reference (" in ended.err
    assert sheet.samefile("sheet.png")
    assert svi_story("export", board, "--to", "bundle", "-o", ".").code == 0
    before = Path("board.zip").read_bytes()
    ended = svi_story("export", "board.zip", "--to", "bundle", "-o", ".")
    assert ended.code == 2
    assert "board.zip reads it as its bundle" in ended.err
    assert Path("board.zip").read_bytes() == before


@pytest.mark.parametrize("damage", ["gone", "damaged", "pipes", "unwritable"])
def test_files_of_an_older_svi_story_are_replaced(
    write_board: Write, run: Run, written: dict[str, bytes], damage: str
) -> None:
    """They are the same files, and the ledger knows nothing of them."""
    notes = list(LEDGER.iterdir())
    assert len(notes) == len(COMMANDS) + 2  # and a clip's other file and note
    if damage in ("gone", "unwritable"):
        shutil.rmtree(LEDGER)
    if damage == "unwritable":
        LEDGER.write_bytes(b"")
    for path in notes if damage in ("damaged", "pipes") else ():
        path.unlink()
        if damage == "pipes":
            os.mkfifo(path)
        else:
            path.write_text("[" * 10_000)
    clips = [{**clip, "seed": seed} for seed, clip in enumerate(BOARD["clips"], 7)]
    write_board(**{**BOARD, "clips": [{**clips[0], "caption": "Sun"}, clips[1]]})
    for command in dict.fromkeys(COMMANDS.values()):
        ended = run(command)
        assert ended.code == 0, ended.err
        assert "is kept" not in ended.err
    for name, before in written.items():
        assert (RENDERS / name).read_bytes() != before, name


def test_a_contact_sheet_is_known_before_there_is_a_film(board: Path, svi_story: Run) -> None:
    assert svi_story("preview", board).code == 0
    shutil.rmtree(LEDGER)
    assert is_sheet(RENDERS / "board.preview.png")
    assert not is_sheet(Path("anchor.png"))
    assert svi_story("preview", board).code == 0


@pytest.mark.parametrize("ledger", [True, False])
@pytest.mark.parametrize(
    ("name", "code"), [("board.mp4", 2), ("board.json", 0), ("board.srt", 0), ("board.preview.png", 0)]
)
def test_what_was_changed_since_is_kept(
    write_board: Write, run: Run, board: Path, name: str, code: int, ledger: bool
) -> None:
    command = COMMANDS[name]
    assert run(command).code == 0
    (RENDERS / name).write_bytes(MINE)
    if not ledger:
        shutil.rmtree(LEDGER)
    write_board(**{**BOARD, "title": "Another", "clips": [{**BOARD["clips"][0], "caption": "Snow"}]})
    ended = run(command)
    if name == "board.preview.png" and not ledger:
        code = 2  # nothing tells that one was ever written
    assert ended.code == code, ended.err
    assert f"renders/{name}: " in ended.err
    assert ("and is kept; remove it to get" in ended.err) == (code == 0)
    assert (RENDERS / name).read_bytes() == MINE
    (RENDERS / name).unlink()
    assert run(command, *(("--force", "all") if command[0] == "render" else ())).code == 0
    assert (RENDERS / name).read_bytes() != MINE


@pytest.mark.parametrize("name", ["board.review.html", "board.otio", "board.zip"])
def test_the_only_file_of_a_command_is_refused_where_it_was_changed(
    board: Path, run: Run, written: dict[str, bytes], name: str
) -> None:
    with (RENDERS / name).open("ab") as file:
        file.write(b"more")
    ended = run(COMMANDS[name])
    assert ended.code == 2
    assert "this was changed since svi-story wrote it; move it away" in ended.err
    assert (RENDERS / name).read_bytes() == written[name] + b"more"


def test_changed_media_are_kept_and_the_timeline_is_written(
    board: Path, run: Run, written: dict[str, bytes]
) -> None:
    clip, note = RENDERS / "board.media/sea.prores.mov", RENDERS / "board.media/fog.prores.mov.json"
    for path in (clip, note):
        path.write_bytes(MINE)
    (RENDERS / "board.otio").unlink()
    ended = run(OTIO)
    assert ended.code == 0, ended.err
    assert ended.err.count("and is kept; remove it to get") == 2
    assert clip.read_bytes() == note.read_bytes() == MINE
    assert (RENDERS / "board.otio").read_bytes() == written["board.otio"]


def test_another_svi_story_s_film_is_ours(write_board: Write, svi_story: Run, board: Path) -> None:
    """Two caches write one film in turn: neither ledger lists what the other wrote."""
    for title, cache in (("A", "one"), ("B", "two"), ("C", "one"), ("D", "two")):
        write_board(**{**BOARD, "title": title})
        ended = svi_story("render", board, "--cache", cache)
        assert ended.code == 0, ended.err
        assert "is kept" not in ended.err
        assert json.loads((RENDERS / "board.json").read_text())["title"] == title


def test_the_film_of_another_board_is_kept_while_that_board_exists(
    write_board: Write, svi_story: Run
) -> None:
    for folder in ("x", "y"):
        write_board(f"{folder}/a.yaml", reference="../anchor.png", **{**BOARD, "title": folder})
    assert svi_story("render", "x/a.yaml", "-o", RENDERS).code == 0
    before = tree(RENDERS)
    ended = svi_story("render", "y/a.yaml", "-o", RENDERS)
    assert ended.code == 2
    assert "renders/a.mp4: y/a.yaml would write its film here, but this is the film of /" in ended.err
    assert "x/a.yaml; move it away, or choose another folder with -o" in ended.err
    assert tree(RENDERS) == before
    Path("x/a.yaml").rename("x/b.yaml")
    assert svi_story("render", "y/a.yaml", "-o", RENDERS).code == 0, "its board moved or is gone"
    assert tree(RENDERS) != before


def test_a_project_may_be_copied(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_board("one/storyboards/a.yaml", reference="anchor.png", **BOARD)
    shutil.copy("anchor.png", "one/storyboards")
    monkeypatch.chdir("one")
    assert svi_story("render", "storyboards").code == 0
    monkeypatch.chdir(tmp_path)
    shutil.copytree("one", "two")
    write_board("two/storyboards/a.yaml", reference="anchor.png", **{**BOARD, "title": "Two"})
    monkeypatch.chdir("two")
    ended = svi_story("render", "storyboards")
    assert ended.code == 0, ended.err


def test_a_film_so_far_that_is_another_board_s_film(write_board: Write, svi_story: Run) -> None:
    for name in ("a", "a.partial"):
        write_board(f"storyboards/{name}.yaml", reference="../anchor.png", **BOARD)
    ended = svi_story("render", "storyboards")
    assert ended.code == 2
    assert (
        "storyboards/a.partial.yaml: would write renders/a.partial.mp4, and so would storyboards/a.yaml"
        in ended.err
    )
    assert svi_story("render", "storyboards/a.partial.yaml").code == 0
    before = tree(RENDERS)
    for _ in range(2):
        ended = svi_story("render", "storyboards/a.yaml")
        assert (ended.code, "is the film of " in ended.err) == (2, True), ended.err
        assert tree(RENDERS) == before


def test_a_file_where_no_film_so_far_is_written_stays(write_board: Write, svi_story: Run) -> None:
    put(RENDERS / "board.partial.mp4")
    board = write_board(**{**BOARD, "clips": BOARD["clips"][:1]})
    for _ in range(2):
        assert svi_story("render", board).code == 0
        assert (RENDERS / "board.partial.mp4").read_bytes() == MINE


def test_a_film_that_is_up_to_date_needs_nothing(board: Path, svi_story: Run) -> None:
    """Nothing would be written: what lies beside it, or that it is a link, is no matter."""
    assert svi_story("render", board).code == 0
    Path("films").mkdir()
    (RENDERS / "board.mp4").rename("films/board.mp4")
    (RENDERS / "board.mp4").symlink_to("../films/board.mp4")
    put(RENDERS / "board.partial.mp4")
    before = tree(Path())
    ended = svi_story("render", board)
    assert ended.code == 0, ended.err
    assert tree(Path()) == before
    assert svi_story("render", board, "--force", "sea").code == 2


def test_a_file_that_appears_while_a_film_is_rendered_is_kept(
    board: Path, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("svi_story.render.film.Film._mix_sound", lambda *_args: put(RENDERS / "board.mp4"))
        ended = svi_story("render", board)
    assert ended.code == 1
    assert "renders/board.mp4: was put there by another program" in ended.err
    assert (RENDERS / "board.mp4").read_bytes() == MINE
    assert not list(RENDERS.glob(".tmp-*"))
    (RENDERS / "board.mp4").unlink()
    ended = svi_story("render", board, "--json")
    assert (ended.code, "segment_started" in ended.out) == (0, False)


def test_the_ledger_is_pruned(board: Path, svi_story: Run) -> None:
    assert svi_story("render", board).code == 0
    (RENDERS / "board.srt").unlink()
    (LEDGER / "damaged.json").write_text("{}")
    store = Store(RENDERS / ".cache", print)
    why = "the record of a file that was deleted"
    found = [item for item in store.garbage(now=4e9) if item.why == why]
    assert len(found) == 3, "the captions, the film so far, and what is no note"
    store.delete(found)
    assert len(list(LEDGER.iterdir())) == 2


def test_a_ledger_moves_with_its_project(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Outputs(tmp_path / "one/cache").write(tmp_path / "one/a.srt", b"words")
    (tmp_path / "one").rename(tmp_path / "two")
    moved = Outputs(tmp_path / "two/cache")
    assert moved.is_ours(tmp_path / "two/a.srt")
    os.utime(tmp_path / "two/a.srt")
    assert moved.is_ours(tmp_path / "two/a.srt"), "its content says it"
    (tmp_path / "two/a.srt").write_bytes(b"sword")
    assert not moved.is_ours(tmp_path / "two/a.srt")
    assert moved.is_listed(tmp_path / "two/a.srt")


def test_a_killed_writer_leaves_a_file_that_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is written first, so it lists what is there, whichever it is."""
    target, outputs = tmp_path / "a.srt", Outputs(tmp_path / "cache")
    outputs.write(target, b"one")

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda a, b: killed() if b == target else replace(a, b))
    with pytest.raises(KeyboardInterrupt):
        outputs.write(target, b"two")
    monkeypatch.undo()
    assert target.read_bytes() == b"one"
    assert Outputs(tmp_path / "cache").is_ours(target)
    Outputs(tmp_path / "cache").write(target, b"three")
    target.write_bytes(b"mine")
    with pytest.raises(RenderError, match="is kept"):
        Outputs(tmp_path / "cache").write(target, b"four")
    assert target.read_bytes() == b"mine"


def test_a_cache_does_not_replace_other_files(write_board: Write, board: Path, svi_story: Run) -> None:
    for name, text in (("memo.json", '{"a": "b"}'), ("calibration.json", "[1]"), ("memo.json", "words")):
        path = Path("cache", name)
        put(path)
        path.write_text(text)
        for command in ("plan", "validate", "preview", "render"):
            assert svi_story(command, board, "--cache", "cache").code == 0, command
        assert path.read_text() == text
    voice = Path(__file__).parent / "boards/sounds/voice.wav"
    board = write_board(**{**BOARD, "cut": {"audio": str(voice)}})
    assert svi_story("render", board, "--cache", "cache").code == 0
    hashes = user_cache() / "hashes.json"
    kinds = {key.partition(" ")[0] for key in json.loads(hashes.read_text())}
    assert kinds == {"sha256", "picture-size", "pixels", "samples"}
    hashes.write_text("damaged")
    assert svi_story("render", board, "--cache", "cache").code == 0


def test_a_new_file_never_takes_a_name_that_is_taken(
    tmp_path: Path, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may appear after it was looked for; a folder may have the name of unfinished work."""
    target = tmp_path / "a.yaml"
    target.write_bytes(MINE)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda _path: False)
        patch.setattr(Path, "is_symlink", lambda _path: False)
        with pytest.raises(InputError, match="exists already"):
            write_new(target, b"other")
    assert svi_story("new", target).code == 2
    assert target.read_bytes() == MINE
    put(tmp_path / ".film.new/mine")
    assert svi_story("new", "film").code == 0
    assert (tmp_path / ".film.new/mine").read_bytes() == MINE


def test_the_doctor_s_picture_takes_a_free_name(tmp_path: Path) -> None:
    put(tmp_path / "doctor-smoke.png")
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    made = RenderedClip({}, frames)
    weights, outputs = ModelFolders((tmp_path,)), Outputs(tmp_path / "cache")
    trial = SmokeTest(weights, "2.0", "16x16", 9, 1, "float32", None, tmp_path, outputs)
    for _ in range(2):
        assert save_pictures(trial, frames[0], (made, made, made)).name == "doctor-smoke-2.png"
    assert (tmp_path / "doctor-smoke.png").read_bytes() == MINE


@pytest.mark.parametrize(
    "raw", [b"", b"\0" * 64, b"\0\0\0\x08free" * 100_000, b"\0\0\0\x01uuid", b"\xff" * 99]
)
def test_no_file_is_taken_for_a_film_of_ours(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(raw)
    assert read_xmp(path) == b""
    with path.open("r+b") as file:
        add_xmp(file, b"<x/>")
    assert read_xmp(path) in (b"", b"<x/>")
    path.unlink()
    os.mkfifo(path)
    assert read_xmp(path) == b""
