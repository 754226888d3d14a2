"""Templates for new boards: a folder each, with `board.yaml` and its images."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from svi_story.errors import InputError, Problem
from svi_story.fields import format_value, nearest, text_problem
from svi_story.files import remove_stale_temps, temp_name
from svi_story.portable import is_reserved
from svi_story.storyboard.files import unwritable, write_new

BOARD = "board.yaml"
SUFFIXES = (".yaml", ".yml")


def names() -> tuple[str, ...]:
    """The templates that ship, sorted."""
    return tuple(sorted(path.parent.name for path in _root().glob(f"*/{BOARD}")))


def describe(name: str) -> str:
    """A template's purpose in one line: the first comment in its board that is not for editors."""
    for line in (_folder(name) / BOARD).read_text("utf-8").splitlines():
        comment = line.removeprefix("#").strip()
        if line.startswith("#") and comment and not comment.startswith("yaml-language-server"):
            return comment
    return ""


def create(name: str, target: Path) -> Path:
    """Copy a template and return the new board's path.

    A target that ends in .yaml or .yml becomes the board, its images beside it; any other becomes a folder
    with `<its name>.yaml` in it. An image that exists already with the same bytes is kept.
    Raises InputError, having written nothing, for an unknown template, for an unusable name, and when
    anything else that would be written exists.
    """
    source = _folder(name)
    unfit = not target.name or target.name.startswith(".") or is_reserved(target.name)
    if unfit or text_problem(str(target), one_line=True):
        what = (
            f"{format_value(str(target))} is not a name for a board; write a name, as my-film or my-film.yaml"
        )
        raise InputError(what)
    try:
        return _write_beside(source, target) if target.suffix in SUFFIXES else _write_folder(source, target)
    except OSError as error:
        raise unwritable(target, error) from error


def _root() -> Path:
    """The folder of the templates: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"


def _folder(name: str) -> Path:
    known = names()
    if name in known:
        return _root() / name
    meant = nearest(name, known)
    guess = f'did you mean "{meant}"? ' if meant else ""
    raise InputError(f"{format_value(name)} is not a template; {guess}use one of {', '.join(known)}")


def _write_folder(source: Path, target: Path) -> Path:
    _refuse_existing(target)
    work = target.with_name(temp_name())
    remove_stale_temps(target.absolute().parent)
    try:
        for file in _files(source):
            place = work / (f"{target.name}.yaml" if file.name == BOARD else file.relative_to(source))
            write_new(place, file.read_bytes())
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / f"{target.name}.yaml"


def _write_beside(source: Path, target: Path) -> Path:
    places = [
        (target if file.name == BOARD else target.parent / file.relative_to(source), file)
        for file in _files(source)
    ]
    _refuse_existing(target)
    missing = [(place, file) for place, file in places if not _is_present(place, file, target)]
    written: list[Path] = []
    try:
        for place, file in missing:
            write_new(place, file.read_bytes())
            written.append(place)
    except BaseException:
        for place in written:
            place.unlink(missing_ok=True)
        raise
    return target


def _files(source: Path) -> list[Path]:
    """A template's files, the board last: when it appears, its images exist."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: path.name == BOARD)


def _is_present(place: Path, file: Path, board: Path) -> bool:
    """Whether a template's file exists at its target already. Raises InputError for another file there."""
    if not _exists(place):
        return False
    if not (place.is_file() and filecmp.cmp(place, file, shallow=False)):
        elsewhere = board.parent / board.stem / board.name
        what = "exists already and differs from the template's file; choose another folder, as "
        what += format_value(str(elsewhere))
        raise InputError(Problem(what, file=str(place)))
    return True


def _refuse_existing(place: Path) -> None:
    if _exists(place):
        raise InputError(Problem("exists already; choose another name", file=str(place)))


def _exists(place: Path) -> bool:
    return place.exists() or place.is_symlink()
