"""Loads a board: its file read, checked and typed, with the line of every place in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.fields import Loc, format_path, format_value
from svi_story.storyboard.files import absent, decode, read_bytes
from svi_story.storyboard.schema import Storyboard, resolved_ids
from svi_story.storyboard.validation import MOST_ERRORS, FieldError, validate
from svi_story.storyboard.yaml12 import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from svi_story.storyboard.validation import Data, Validation


@dataclass(frozen=True)
class Lines:
    """The line of every place of a board."""

    written: Mapping[Loc, int]

    def of(self, loc: Loc) -> int:
        """The 1-based line of a place, or of the nearest written parent; 0 when there is none."""
        for length in range(len(loc), -1, -1):
            if loc[:length] in self.written:
                return self.written[loc[:length]]
        return 0


@dataclass(frozen=True)
class BoardFile:
    """A storyboard that was read, and what messages need to name its places."""

    path: Path
    """As the user gave it."""
    story: Storyboard
    ids: tuple[str, ...]
    """Every clip's id, in order."""
    lines: Lines
    digest: str
    """sha256 (hex) of the file's bytes."""
    text: str
    """Its text, with `\\n` line breaks."""
    elsewhere: Mapping[str, Path] | None = None
    """Where the files lie that it names, by name, if not where it says; then it can name no others."""

    def file(self, name: str) -> Path:
        """Where a file lies that this board names."""
        return self.path.parent / name if self.elsewhere is None else self.elsewhere[name]

    def problem(self, loc: Loc, what: str) -> Problem:
        """Something wrong at a place of this board."""
        return Problem(what, file=str(self.path), line=self.lines.of(loc), path=format_path(loc))


def load(path: Path, elsewhere: Mapping[str, Path] | None = None) -> BoardFile:
    """Read a board. Raises InputError with everything that is wrong with it, in the order of its lines.

    Images and recordings are looked for, not opened: `plan` does that. Where `elsewhere` is given, the files
    are those, and nothing is looked for.
    """
    raw = read_bytes(path)
    text = decode(raw, str(path))
    document = parse(text, str(path))
    if not isinstance(document.data, dict):
        what = "is not a board; start with `version: 1` and write `name: value` lines"
        what = f"{format_value(document.data)} {what}"
        raise InputError(Problem(what, file=str(path), line=document.lines[()]))
    lines = Lines(document.lines)
    checked = validate(document.data)
    known = document.data if checked.valid else {}
    reported = {error.loc for error in checked.errors}
    missing = _missing_files(known, reported, path.parent) if elsewhere is None else ()
    errors = (*checked.errors, *_conflicts(checked, lines), *missing)
    problems = [Problem(what, str(path), lines.of(loc), format_path(loc)) for loc, what in errors]
    problems += document.problems
    if problems or checked.story is None:
        raise InputError(*sorted(problems, key=lambda problem: problem.line))
    ids = resolved_ids(checked.story.clips)
    digest = hashlib.sha256(raw).hexdigest()
    return BoardFile(path, checked.story, ids, lines, digest, text, elsewhere)


def _conflicts(checked: Validation, lines: Lines) -> Iterator[FieldError]:
    for conflict in checked.conflicts[:MOST_ERRORS]:
        yield FieldError(conflict.loc, conflict.text(lines.of(conflict.other)))
    rest = checked.conflicts[MOST_ERRORS:]
    if rest:
        yield FieldError(rest[0].loc, f"and {len(rest)} more like these")


def _missing_files(data: Data, reported: set[Loc], folder: Path) -> Iterator[FieldError]:
    """Images and recordings that do not exist, at places without other errors. Each is looked up once."""
    reasons: dict[str, str] = {}
    for loc, name, kind in _files_in(data):
        if not isinstance(name, str) or reported & {loc, (*loc, "path")}:
            continue
        if name not in reasons:
            reasons[name] = absent(folder / name)
        if reasons[name]:
            what = f"{format_value(name)} {reasons[name]}; name {kind}, relative to the board's folder"
            yield FieldError(loc, what)


def _files_in(data: Data) -> Iterator[tuple[Loc, object, str]]:
    """Every image and recording in possibly invalid data: where, what is written there, what is expected."""

    def path_of(recording: object) -> object:
        return recording.get("path") if isinstance(recording, dict) else recording

    image, recording = "an image", "an audio file"
    yield ("reference",), data.get("reference"), image
    clips = data.get("clips")
    for index, clip in enumerate(clips if isinstance(clips, list) else ()):
        if not isinstance(clip, dict):
            continue
        yield ("clips", index, "reference"), clip.get("reference"), image
        yield ("clips", index, "voice"), path_of(clip.get("voice")), recording
        sounds = clip.get("sounds")
        for number, each in enumerate(sounds if isinstance(sounds, list) else ()):
            yield ("clips", index, "sounds", number), path_of(each), recording
    cut = data.get("cut")
    yield ("cut", "audio"), path_of(cut.get("audio") if isinstance(cut, dict) else None), recording
