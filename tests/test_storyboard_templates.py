"""Starting points: they ship, they are boards, and making one never touches what is there."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from svi_story.errors import InputError
from svi_story.files import temp_name
from svi_story.storyboard import templates
from svi_story.storyboard.schema import MODELINE
from svi_story.storyboard.source import load


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_are_three_templates_each_with_a_description_of_its_own() -> None:
    names = templates.names()
    assert len(names) >= 3
    assert "minimal" in names
    described = [templates.describe(name) for name in names]
    assert all(described)
    assert len(set(described)) == len(names)


def test_a_description_is_for_people_not_for_editors(
    own_ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_ground / "odd").mkdir()
    (own_ground / "odd/board.yaml").write_text(f"{MODELINE}\n#\n# Odd.\nversion: 1  # one\n", "utf-8")
    monkeypatch.setattr(templates, "_root", lambda: own_ground)
    assert (templates.names(), templates.describe("odd")) == (("odd",), "Odd.")


@pytest.mark.parametrize("name", templates.names())
def test_a_template_becomes_a_folder_with_a_valid_board(name: str) -> None:
    board = templates.create(name, Path("films/my film"))
    assert board == Path("films/my film/my film.yaml")
    assert load(board).story.title is None or load(board).ids
    assert [path.name for path in Path("films").iterdir()] == ["my film"]


@pytest.mark.parametrize("name", templates.names())
@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_template_becomes_a_board_beside_what_is_there(name: str, suffix: str) -> None:
    Path("images").mkdir()
    Path("images/mine.png").write_bytes(b"mine")
    board = templates.create(name, Path(f"mine{suffix}"))
    assert board == Path(f"mine{suffix}")
    assert load(board).ids
    assert Path("images/mine.png").read_bytes() == b"mine"


def test_a_new_file_has_the_usual_rights() -> None:
    Path("usual").touch()
    board = templates.create("minimal", Path("film"))
    assert board.stat().st_mode == Path("usual").stat().st_mode
    Path("folder").mkdir()
    assert Path("film").stat().st_mode == Path("folder").stat().st_mode


@pytest.mark.parametrize("kind", ["file", "folder", "full folder", "dangling link"])
def test_nothing_that_exists_is_touched(kind: str) -> None:
    if kind == "file":
        Path("film").write_bytes(b"mine")
    elif kind == "dangling link":
        Path("film").symlink_to("nowhere")
    else:
        Path("film").mkdir()
        if kind == "full folder":
            Path("film/film.yaml").write_bytes(b"mine")
    before = tree(Path())
    with pytest.raises(InputError, match="film: exists already; choose another name"):
        templates.create("minimal", Path("film"))
    assert tree(Path()) == before


def test_no_board_and_no_image_is_overwritten() -> None:
    first = templates.create("minimal", Path("film.yaml"))
    before = tree(Path())
    with pytest.raises(InputError, match=r"film\.yaml: exists already"):
        templates.create("minimal", first)
    assert tree(Path()) == before


@pytest.mark.parametrize("name", templates.names())
def test_boards_in_one_folder_share_their_images(name: str) -> None:
    first, second = (templates.create(name, Path(board)) for board in ("a.yaml", "b.yaml"))
    assert first.read_bytes() == second.read_bytes()
    assert load(second).ids


@pytest.mark.parametrize("kind", ["other bytes", "folder", "dangling link"])
def test_another_image_in_the_way_is_told_with_a_folder_that_works(kind: str) -> None:
    templates.create("minimal", Path("a.yaml"))
    (image,) = Path("images").iterdir()
    if kind == "other bytes":
        image.write_bytes(b"mine")
    else:
        image.unlink()
        image.mkdir() if kind == "folder" else image.symlink_to("nowhere")
    before = tree(Path())
    with pytest.raises(InputError) as caught:
        templates.create("minimal", Path("b.yaml"))
    assert tree(Path()) == before
    assert str(caught.value) == (
        f'{image}: exists already and differs from the template\'s file; choose another folder, as "b/b.yaml"'
    )
    assert load(templates.create("minimal", Path("b/b.yaml"))).ids


def test_an_image_that_was_there_outlives_a_failed_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    templates.create("minimal", Path("a.yaml"))
    before = tree(Path())

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        templates.create("minimal", Path("b.yaml"))
    assert tree(Path()) == before


@pytest.mark.parametrize("target", ["film", "film.yaml", "deep/film", "deep/film.yaml"])
def test_a_failed_attempt_leaves_no_file(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def full(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        templates.create("scenes", Path(target))
    assert tree(Path()) == {}
    monkeypatch.undo()


def test_a_place_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(InputError, match=r"^dvd/film: cannot be written \(Read-only file system\)"):
        templates.create("minimal", Path("dvd/film"))


def test_what_an_interrupted_attempt_left_is_no_obstacle() -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    left = Path(temp_name().replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    left.mkdir()
    (left / "half").write_bytes(b"")
    Path(f"{left}-film.yaml").write_bytes(b"")
    assert load(templates.create("minimal", Path("film"))).ids
    assert [path.name for path in Path().iterdir()] == ["film"]


def test_a_place_that_cannot_be_written_is_told() -> None:
    Path("file").write_bytes(b"")
    for target in ("file/film", "file/film.yaml"):
        with pytest.raises(InputError, match=r"cannot be written \(Not a directory\)"):
            templates.create("minimal", Path(target))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/..", "/", ".hidden", ".yaml", "two\nlines", "nul\0", "a\x1b/b", "cat.JPG", "p.txt"],
)
def test_names_that_name_nothing_are_refused(name: str, own_ground: Path) -> None:
    before = tree(own_ground)
    with pytest.raises(InputError, match="is not a name for a board"):
        templates.create("minimal", Path(name))
    assert tree(own_ground) == before


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("minmal", 'did you mean "minimal"? use one of minimal, '),
        ("xyz", "use one of minimal, "),
        ("../minimal", ""),
        ("", "use one of"),
    ],
)
def test_an_unknown_template_is_refused(name: str, cure: str) -> None:
    for attempt in (templates.describe, lambda name: templates.create(name, Path("film"))):
        with pytest.raises(InputError, match="is not a template") as caught:
            attempt(name)
        assert cure in str(caught.value)
    assert not Path("film").exists()
