"""Loads a board: its file read, checked and typed, with the line of every place in it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from svi_story.errors import InputError, Problem
from svi_story.fields import Loc, format_path, format_value
from svi_story.storyboard.files import absent, decode, read_bytes
from svi_story.storyboard.names import find_file, nearest_file, why_elsewhere
from svi_story.storyboard.pitfalls import cut_off, escapes, lookalike_in, misread_lines
from svi_story.storyboard.schema import Storyboard, default_id, resolved_ids
from svi_story.storyboard.validation import FIELD_NAMES, MOST_ERRORS, FieldError, validate
from svi_story.storyboard.variables import replace_variables
from svi_story.storyboard.yaml12 import Document, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.storyboard.validation import Data, Validation


@dataclass(frozen=True)
class LineNumbers:
    """The line of every place of a board."""

    written: Mapping[Loc, int]

    def of(self, loc: Loc) -> int:
        """The 1-based line of a place, or of the nearest written parent; 0 when there is none."""
        for length in range(len(loc), -1, -1):
            if loc[:length] in self.written:
                return self.written[loc[:length]]
        return 0


FileKind = Literal["image", "recording", "weights"]


@dataclass(frozen=True)
class NamedFile:
    """A file as the author named it, and where."""

    loc: Loc
    name: str
    kind: FileKind


class Resolver(Protocol):
    """From the file names on a board to paths on this machine, and back."""

    def path(self, name: str) -> Path:
        """The path of the file that the board calls `name`."""

    def name(self, path: Path) -> str:
        """What the board calls the file at `path`."""

    def unusable(self, name: str, kind: FileKind) -> str:
        """Why a name cannot be used, and the remedy; empty when it can."""

    def rephrase(self, problem: Problem) -> Problem:
        """The same problem with the file names that the user knows."""


@dataclass(frozen=True)
class FolderResolver:
    """Names are paths, relative to the board's folder."""

    folder: Path

    def path(self, name: str) -> Path:
        """As `find_file`: it may not exist."""
        return find_file(self.folder, name)

    def name(self, path: Path) -> str:
        """The path, relative to the board's folder where it lies below it."""
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)

    def unusable(self, name: str, kind: FileKind) -> str:
        """Images and recordings must exist; a LoRA is checked when the cache keys are computed."""
        reason = "" if kind == "weights" else absent(self.path(name))
        if not reason:
            return ""
        if elsewhere := why_elsewhere(name):
            return elsewhere
        if reason == "does not exist" and (near := nearest_file(self.folder, name)):
            return f"{reason}; there is {format_value(near)}"
        what = "an image" if kind == "image" else "an audio file"
        return f"{reason}; name {what}, relative to the board's folder"

    def rephrase(self, problem: Problem) -> Problem:
        """Paths are the user's already."""
        return problem


@dataclass(frozen=True)
class BoardFile:
    """A storyboard that was read, with the line numbers and names that messages need."""

    path: Path
    """As the user gave it."""
    story: Storyboard
    ids: tuple[str, ...]
    """Every clip's id, in order."""
    lines: LineNumbers
    digest: str
    """sha256 (hex) of the file's bytes."""
    text: str
    """Its text, with `\\n` line breaks."""
    resolver: Resolver
    named: tuple[NamedFile, ...]
    """Every file that it names; one that is named twice comes twice."""
    unquoted: tuple[FieldError, ...]
    """Texts without quotes, which YAML probably reads differently than they are meant."""

    def file(self, name: str) -> Path:
        """The path of a file that this board names."""
        return self.resolver.path(name)

    def problem(self, loc: Loc, what: str) -> Problem:
        """Something wrong at a place of this board."""
        problem = Problem(
            what,
            str(self.path),
            self.lines.of(loc),
            format_path(loc),
            _clip_id(loc, partial(_known_id, self.ids)),
        )
        return self.resolver.rephrase(problem)


def _clip_id(loc: Loc, id_of: Callable[[int], str]) -> str:
    """The id of the clip that a place is in; empty where it is in none."""
    return id_of(loc[1]) if loc[:1] == ("clips",) and len(loc) > 1 and isinstance(loc[1], int) else ""


def _known_id(ids: Sequence[str], index: int) -> str:
    return ids[index] if index < len(ids) else ""


def _written_id(data: object, index: int) -> str:
    """A clip's id in a board that may be invalid."""
    try:
        name = data["clips"][index]["id"]  # type: ignore[index]  # a wrong type raises one of the errors below
    except (LookupError, TypeError):
        name = None
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 60 else default_id(index)


def load(path: Path, resolver: Resolver | None = None, raw: bytes | None = None) -> BoardFile:
    """Read a board. Raises InputError with everything that is wrong with it, in the order of its lines.

    `resolver` finds the files that it names, by default in its folder. They are not opened: `plan` does that.
    `raw` are the bytes of the board, by default those of its file.
    """
    resolver = resolver or FolderResolver(path.parent)
    try:
        return _load(path, resolver, read_bytes(path) if raw is None else raw)
    except InputError as error:
        raise InputError(*map(resolver.rephrase, error.problems)) from error


_TOP_LEVEL = re.compile(r"""^["']?(version|clips)["']?[ \t]*:""", re.MULTILINE)


def is_storyboard(path: Path) -> bool:
    """Whether a YAML file is meant as a storyboard: it has `version` and `clips` at the top level.

    True for a file that cannot be read, so that `load` reports the error.
    """
    try:
        text = decode(read_bytes(path), str(path))
    except InputError:
        return True
    written = {match[1] for match in _TOP_LEVEL.finditer(text)}
    if len(written) == 2:
        return True
    try:
        data = parse(text, str(path)).data
    except InputError:
        return bool(written)
    return isinstance(data, dict) and {"version", "clips"} <= data.keys()


def _load(path: Path, resolver: Resolver, raw: bytes) -> BoardFile:
    text = decode(raw, str(path))
    document = parse(text, str(path), FIELD_NAMES)
    if not isinstance(document.data, dict):
        what = "is not a board; start with `version: 1` and write `name: value` lines"
        what = f"{format_value(document.data)} {what}"
        raise InputError(Problem(what, file=str(path), line=document.lines[()]))
    lines = LineNumbers(document.lines)
    data, wrong_variables = replace_variables(document.data)
    checked = validate(data)
    named = tuple(_named_files(data if checked.valid else {}))
    invalid = {error.loc for error in checked.errors}
    errors = (
        *(FieldError(*each) for each in wrong_variables[:MOST_ERRORS]),
        *checked.errors,
        *_conflicts(checked, lines),
        *_unusable_files(named, invalid, resolver),
    )
    misread = tuple(misread_lines(text, document.written.values(), FIELD_NAMES))
    if errors or document.problems or checked.story is None:
        causes = {line: what for line, what, in_text in misread if not in_text}
        problems = [
            Problem(
                _explained(loc, what, document),
                *(str(path), lines.of(loc), format_path(loc), _clip_id(loc, partial(_written_id, data))),
            )
            for loc, what in errors
        ]
        problems = [each for each in (*problems, *document.problems) if each.line not in causes]
        problems += [Problem(what, str(path), line) for line, what in causes.items()]
        raise InputError(*sorted(problems, key=lambda problem: problem.line))
    ids = resolved_ids(checked.story.clips)
    digest = hashlib.sha256(raw).hexdigest()
    unquoted = tuple(
        _unquoted(document, text, [(line, what) for line, what, in_text in misread if in_text][:MOST_ERRORS])
    )
    return BoardFile(path, checked.story, ids, lines, digest, text, resolver, named, unquoted)


def _explained(loc: Loc, what: str, document: Document) -> str:
    """A problem, with its probable cause if the spelling of the value shows one."""
    places = (loc, (*loc, "path"), loc[:-1])
    place = next((each for each in places if each in document.written), None)
    if lookalike := lookalike_in(str(loc[-1]) if loc else ""):
        return f"{what}; the name contains {lookalike}"
    if place is None:
        return what
    value, is_path = document.written[place], _is_path(place)
    if hint := escapes(value, is_path=is_path):
        return hint if is_path else f"{what}; {hint}"
    if (is_path or place[-1] in TEXTS) and (hint := cut_off(value, failed=is_path or not value.source)):
        return f"{what}; {hint}" if value.source else hint
    if not is_path and (lookalike := lookalike_in(value.source)):
        return f"{what}; it contains {lookalike}"
    return what


def _unquoted(document: Document, text: str, misread: list[tuple[int, str]]) -> Iterator[FieldError]:
    for loc, value in document.written.items():
        if loc and (_is_path(loc) or loc[-1] in TEXTS) and (what := cut_off(value)):
            yield FieldError(loc, what if value.last == value.first else f"{what} (line {value.last})")
        anchor = re.match(r"&(\S+)\s", value.source)
        if anchor and f"*{anchor[1]}" not in text:
            yield FieldError(loc, f"&{anchor[1]} is an anchor, and not a part of the text; put it in quotes")
        for line, what in misread:
            if value.first < line <= value.last:
                yield FieldError(loc, f"line {line} is part of this text; {what}")


PATHS = ("reference", "path", "voice", "audio", "high", "low")
TEXTS = ("prompt", "negative_prompt", "style", "title", "caption", "text", "title_card", "end_card")


def _is_path(loc: Loc) -> bool:
    return loc[-1] in PATHS or loc[-2:-1] == ("sounds",)


def _conflicts(checked: Validation, lines: LineNumbers) -> Iterator[FieldError]:
    for conflict in checked.conflicts[:MOST_ERRORS]:
        yield FieldError(conflict.loc, conflict.text(lines.of(conflict.other)))
    rest = checked.conflicts[MOST_ERRORS:]
    if rest:
        yield FieldError(rest[0].loc, f"and {len(rest)} more like these")


def _unusable_files(
    named: Collection[NamedFile], invalid: set[Loc], resolver: Resolver
) -> Iterator[FieldError]:
    """Names of files that cannot be used, at places without other errors. Each is looked up once."""
    reasons: dict[tuple[str, FileKind], str] = {}
    for each in named:
        if invalid & {each.loc, (*each.loc, "path")}:
            continue
        key = each.name, each.kind
        if key not in reasons:
            reasons[key] = resolver.unusable(*key)
        if reasons[key]:
            yield FieldError(each.loc, f"{format_value(each.name)} {reasons[key]}")


def _named_files(data: Data) -> Iterator[NamedFile]:
    """Every file that a board names; other parts of the data may be invalid."""
    image: FileKind = "image"
    recording: FileKind = "recording"
    found: list[tuple[Loc, object, FileKind]] = [(("reference",), data.get("reference"), image)]
    engine = _mapping(data.get("engine"))
    found += _loras(("engine", "loras"), engine.get("loras"))
    distill = _mapping(engine.get("distill"))
    found += [(("engine", "distill", name), distill.get(name), "weights") for name in ("high", "low")]
    clips = data.get("clips")
    for index, clip in enumerate(map(_mapping, clips if isinstance(clips, list) else ())):
        at: Loc = ("clips", index)
        found.append(((*at, "reference"), clip.get("reference"), image))
        found += _loras((*at, "loras"), clip.get("loras"))
        found.append(((*at, "voice"), _path_of(clip.get("voice")), recording))
        sounds = clip.get("sounds")
        for number, each in enumerate(sounds if isinstance(sounds, list) else ()):
            found.append(((*at, "sounds", number), _path_of(each), recording))
    found.append((("cut", "audio"), _path_of(_mapping(data.get("cut")).get("audio")), recording))
    return (NamedFile(loc, name, kind) for loc, name, kind in found if isinstance(name, str))


def _loras(at: Loc, written: object) -> Iterator[tuple[Loc, object, FileKind]]:
    for number, lora in enumerate(written if isinstance(written, list) else ()):
        yield (*at, number, "path"), _mapping(lora).get("path"), "weights"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _path_of(recording: object) -> object:
    """The file of a recording, which may be written as its path alone."""
    return recording.get("path") if isinstance(recording, dict) else recording
