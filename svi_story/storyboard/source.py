"""A board's file: read, checked and typed, with the line of every place in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.fields import Loc, shown, spelled
from svi_story.storyboard.checks import MOST_FAULTS, Fault, check
from svi_story.storyboard.files import absent, decode, read_bytes
from svi_story.storyboard.schema import Storyboard, resolved_ids
from svi_story.storyboard.yaml12 import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from svi_story.storyboard.checks import Checked, Data


@dataclass(frozen=True)
class Lines:
    """Where every place of a board is written."""

    written: Mapping[Loc, int]

    def of(self, loc: Loc) -> int:
        """The 1-based line of a place, or of the nearest written part that holds it; 0 when there is none."""
        for length in range(len(loc), -1, -1):
            if loc[:length] in self.written:
                return self.written[loc[:length]]
        return 0


@dataclass(frozen=True)
class BoardFile:
    """A storyboard that was read, with all that is needed to speak about its places."""

    path: Path
    """As the user gave it."""
    story: Storyboard
    ids: tuple[str, ...]
    """Every clip's id, in order."""
    lines: Lines
    digest: str
    """sha256 (hex) of the file's bytes."""
    text: str
    """What is written in it, with `\\n` line breaks."""
    elsewhere: Mapping[str, Path] | None = None
    """Where the files lie that it names, by name, if not where it says; then it can name no others."""

    def file(self, name: str) -> Path:
        """Where a file lies that this board names."""
        return self.path.parent / name if self.elsewhere is None else self.elsewhere[name]

    def problem(self, loc: Loc, what: str) -> Problem:
        """Something wrong at a place of this board."""
        return Problem(what, file=str(self.path), line=self.lines.of(loc), path=spelled(loc))


def load(path: Path, elsewhere: Mapping[str, Path] | None = None) -> BoardFile:
    """Read a board. Raises InputError with everything that is wrong with it, in the order of its lines.

    Images and recordings are looked for, not opened: `plan` does that. Where `elsewhere` is given, the files
    are those, and nothing is looked for.
    """
    raw = read_bytes(path)
    text = decode(raw, str(path))
    document = parse(text, str(path))
    if not isinstance(document.data, dict):
        what = f"{shown(document.data)} is no board; start with `version: 1` and write `name: value` lines"
        raise InputError(Problem(what, file=str(path), line=document.lines[()]))
    lines = Lines(document.lines)
    checked = check(document.data)
    known = document.data if checked.sound else {}
    told = {fault.loc for fault in checked.faults}
    missing = _missing_files(known, told, path.parent) if elsewhere is None else ()
    faults = (*checked.faults, *_clashes(checked, lines), *missing)
    problems = [Problem(f.what, str(path), lines.of(f.loc), spelled(f.loc)) for f in faults]
    problems += document.problems
    if problems or checked.story is None:
        raise InputError(*sorted(problems, key=lambda problem: problem.line))
    ids = resolved_ids(checked.story.clips)
    digest = hashlib.sha256(raw).hexdigest()
    return BoardFile(path, checked.story, ids, lines, digest, text, elsewhere)


def _clashes(checked: Checked, lines: Lines) -> Iterator[Fault]:
    for clash in checked.clashes[:MOST_FAULTS]:
        yield Fault(clash.loc, clash.text(lines.of(clash.other)))
    rest = checked.clashes[MOST_FAULTS:]
    if rest:
        yield Fault(rest[0].loc, f"and {len(rest)} more like these")


def _missing_files(data: Data, told: set[Loc], folder: Path) -> Iterator[Fault]:
    """Images and recordings that are not there, where nothing else is wrong. Each name is asked for once."""
    reasons: dict[str, str] = {}
    for loc, name, kind in _named_files(data):
        if not isinstance(name, str) or told & {loc, (*loc, "path")}:
            continue
        if name not in reasons:
            reasons[name] = absent(folder / name)
        if reasons[name]:
            yield Fault(loc, f"{shown(name)} {reasons[name]}; name {kind}, relative to the board's folder")


def _named_files(data: Data) -> Iterator[tuple[Loc, object, str]]:
    """Every image and recording a board names: where, what is written there, and what it should be."""
    image, recording = "an image", "an audio file"
    yield ("reference",), data.get("reference"), image
    clips = data.get("clips")
    for index, clip in enumerate(clips if isinstance(clips, list) else ()):
        if not isinstance(clip, dict):
            continue
        yield ("clips", index, "reference"), clip.get("reference"), image
        yield ("clips", index, "voice"), _path_of(clip.get("voice")), recording
        sounds = clip.get("sounds")
        for number, each in enumerate(sounds if isinstance(sounds, list) else ()):
            yield ("clips", index, "sounds", number), _path_of(each), recording
    cut = data.get("cut")
    yield ("cut", "audio"), _path_of(cut.get("audio") if isinstance(cut, dict) else None), recording


def _path_of(recording: object) -> object:
    """The file of a recording, which may be written as its path alone."""
    return recording.get("path") if isinstance(recording, dict) else recording
