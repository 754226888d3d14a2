"""New boards: from templates, a folder each with `board.yaml` and its images, and from imported clips."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.fields import blank, format_value, nearest, text_problem
from svi_story.files import read_regular, remove_stale_temps, temp_name
from svi_story.storyboard.files import FORBIDDEN, MAX_BYTES, unwritable, write_new
from svi_story.storyboard.schema import MODELINE, SCHEMA_FILE, json_schema
from svi_story.storyboard.yaml12 import scalar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from svi_story.storyboard.importers import ImportedClip

BOARD = "board.yaml"
SUFFIXES = (".yaml", ".yml")
NO_BOARDS = (".jpg", ".jpeg", ".png", ".webp", ".mp4", ".mov", ".zip", ".json", ".txt", ".md", ".toml")
"""Endings of what somebody wants to start from, not to create."""
SETTINGS = "svi-story.toml"
PROJECT_SETTINGS = """\
# Settings of this project. Remove the # in front of a line to use it; `svi-story config` shows what applies.
# engine = "animatic"          # a preview, on any machine; without it: what the board says
# models = "/data/models"      # where the weights are
# memory = "offload"           # where the experts are: auto, resident, offload or stream
# weights = "int8"             # how the experts are held: bf16, or int8 with half the memory
"""


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
    """Start from a template and return the new board's path.

    A target that ends in .yaml or .yml becomes the board, its images and the schema beside it; a schema that
    exists already is kept, and so is an image with the same bytes. Any other target becomes a project: a
    folder with `<its name>.yaml` in it, settings, and a folder for films.
    Raises InputError, having written nothing, for an unknown template, for an unusable name, and when
    anything else that would be written exists.
    """
    source = _folder(name)
    odd = not target.name or target.name.startswith(".") or target.suffix.lower() in NO_BOARDS
    if odd or text_problem(str(target), one_line=True):
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
    board = Path(f"{target.name}.yaml")
    files = {Path(SETTINGS): PROJECT_SETTINGS.encode(), **_files(source, board)}
    files = {Path("renders/.gitignore"): b"*\n!.gitignore\n", **files}
    work = target.with_name(temp_name())
    remove_stale_temps(target.absolute().parent)
    try:
        work.mkdir(parents=True)  # where that fails, the target is to blame
        for place, data in files.items():
            write_new(work / place, data)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / board


def _write_beside(source: Path, target: Path) -> Path:
    _refuse_existing(target)
    files = {target.parent / place: data for place, data in _files(source, Path(target.name)).items()}
    missing = {place: data for place, data in files.items() if not _is_present(place, data, target)}
    written: list[Path] = []
    try:
        for place, data in missing.items():
            write_new(place, data)
            written.append(place)
    except BaseException:
        for place in written:
            place.unlink(missing_ok=True)
        raise
    return target


def _files(source: Path, board: Path) -> dict[Path, bytes]:
    """A template's files by their new names, the board last: when it appears, what it names exists."""
    schema = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    others = sorted(path for path in source.rglob("*") if path.is_file() and path.name != BOARD)
    files = {path.relative_to(source): path.read_bytes() for path in others}
    return {**files, Path(SCHEMA_FILE): schema.encode(), board: (source / BOARD).read_bytes()}


def _is_present(place: Path, data: bytes, board: Path) -> bool:
    """Whether a file exists at its target already. Raises InputError for another file there."""
    if not _exists(place):
        return False
    if place.name == SCHEMA_FILE:
        return True
    if not (place.is_file() and read_regular(place, MAX_BYTES) == data):
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


# Text that YAML reads literally without quotes: it starts with a letter and contains neither ": " nor " #".
_PLAIN = re.compile(r"[^\W\d_](?:[^\s:#]|:(?=[^\s])|(?<=[^\s])#| (?=[^\s#]))*")


def board_from_clips(clips: Iterable[ImportedClip], reference: str, title: str) -> str:
    """A board, as YAML. A title that cannot be written is left out.

    Raises InputError for a reference that cannot be written in a board.
    """
    reason = text_problem(reference, one_line=True) or (
        "is blank; name the image" if blank(reference) else ""
    )
    if reason:
        raise InputError(Problem(f"the reference {format_value(reference)} {reason}"))
    titled = not blank(title) and not text_problem(title, one_line=True)
    return "\n".join(
        [
            MODELINE,
            "version: 1",
            *([f"title: {_as_scalar(title)}"] if titled else []),
            f"reference: {_as_scalar(reference)}",
            "clips:",
            *("\n    ".join(_fields_of(clip)) for clip in clips),
            "",
        ]
    )


def _fields_of(clip: ImportedClip) -> Iterator[str]:
    yield f"  - prompt: {_as_scalar(clip.prompt)}"
    for name, value in clip.fields.items():
        yield f"{name}: {_as_scalar(value) if isinstance(value, str) else json.dumps(value)}"


def write_board(path: Path, text: str) -> None:
    """Write a new board completely or not at all.

    Raises InputError for a name without a board's suffix, and when the file exists or cannot be written.
    """
    if path.suffix not in SUFFIXES:
        what = f"is not a name for a board; end it in .yaml, as {path.stem or 'board'}.yaml"
        raise InputError(Problem(what, file=str(path)))
    write_new(path, text.encode())


def _as_scalar(text: str) -> str:
    """Text as a YAML scalar that reads back exactly: plain where possible, else in double quotes."""
    if _PLAIN.fullmatch(text) and scalar(text) is text and not FORBIDDEN.search(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return FORBIDDEN.sub(lambda match: f"\\u{ord(match.group()):04x}", quoted)
