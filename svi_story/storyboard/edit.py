"""Edits a board in place: a picked take is written into the author's YAML, and no other byte changes."""

from __future__ import annotations

import hashlib
import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from yaml.nodes import CollectionNode, MappingNode, SequenceNode

from svi_story.errors import InputError
from svi_story.storyboard.files import changed_meanwhile, read_bytes, replace_file
from svi_story.storyboard.source import load
from svi_story.storyboard.yaml12 import nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from yaml.error import Mark
    from yaml.nodes import Node

    from svi_story.storyboard.source import BoardFile


@dataclass(frozen=True)
class Edit:
    """A board in which another take is picked; it is not written yet."""

    before: bytes
    after: bytes
    board: BoardFile
    """The edited board."""
    clip: int
    """Its 0-based place."""
    fields: Mapping[str, int]
    """What is new in the clip, or has another value."""

    @property
    def written(self) -> tuple[str, ...]:
        """Each of the fields with its line, as `board.yaml:7: pick: 2`."""
        return tuple(
            f"{self.board.path}:{self.board.lines.of(('clips', self.clip, name))}: {name}: {value}"
            for name, value in self.fields.items()
        )

    def write(self) -> None:
        """Replace the board's file, unless it was changed since it was read. Raises as `replace_file`."""
        replace_file(self.board.path, self.before, self.after)


def pick_take(board: BoardFile, clip: int, take: int) -> Edit | None:
    """The board with a take (from 1) of its 0-based clip picked; None where it is picked already.

    Written are `pick` and, where the clip has fewer, `takes`. An existing value is replaced. A missing field
    gets a line; where the clip is in braces, both share one, or stand beside a field that is there. All other
    bytes stay. Raises InputError, which says what to write and where, if that would change another part of
    the board too, as it may where there are anchors.
    """
    story = board.story
    written = story.clips[clip]
    wanted = {"takes": max(take, written.takes), "pick": take}
    fields = {name: value for name, value in wanted.items() if value != getattr(written, name)}
    if not fields:
        return None
    before = read_bytes(board.path)
    if hashlib.sha256(before).hexdigest() != board.digest:
        raise changed_meanwhile(board.path)
    clips = (*story.clips[:clip], written.model_copy(update=fields), *story.clips[clip + 1 :])
    expected = story.model_copy(update={"clips": clips})
    bom = BOM_UTF8 if before.startswith(BOM_UTF8) else b""
    node = _clip_node(board.text, clip)
    for text in _edited(before.removeprefix(bom).decode(), node, fields):
        after = bom + text.encode()
        try:
            edited = load(board.path, board.resolver, after)
        except InputError:
            continue
        if edited.story == expected:
            return Edit(before, after, edited, clip, fields)
    new = " and ".join(f"`{name}: {value}`" for name, value in fields.items())
    what = (
        f"{new} cannot be written here without changing another part of the board, as where anchors are used"
    )
    if not isinstance(node, MappingNode):
        what = f"is an alias (*{node.value}); write the clip out instead, with {new}"
    raise InputError(board.problem(("clips", clip), f"{what}; edit the board yourself"))


def _clip_node(text: str, clip: int) -> Node:
    """The node of a 0-based clip of a valid board."""
    root = nodes(text)
    assert isinstance(root, MappingNode)
    clips = next(value for key, value in root.value if key.value == "clips")
    assert isinstance(clips, SequenceNode)
    found: Node = clips.value[clip]
    return found


class _Change(NamedTuple):
    """Text that replaces what is between two places; they are equal where it is inserted."""

    start: int
    end: int
    new: str


_LINE = re.compile(r"[^\r\n]*(?P<end>\r\n|\r|\n|\Z)")


class _Source:
    """A text with its own line breaks, and the entries of a clip in it."""

    def __init__(self, text: str, clip: MappingNode) -> None:
        self.text = text
        self.lines = list(_LINE.finditer(text))
        self.entries: dict[str, tuple[Node, Node]] = {key.value: (key, value) for key, value in clip.value}
        self.first: Node = clip.value[0][0]
        # after `? name: `, the first name is not where the mapping starts
        self.columns = dict.fromkeys((self.first.start_mark.column, clip.start_mark.column))

    def at(self, mark: Mark) -> int:
        """The place of a mark."""
        return self.lines[mark.line].start() + mark.column

    def line_break(self, line: int) -> str:
        """The line break after a 0-based line; of the one before where it is the last."""
        return self.lines[line]["end"] or self.lines[max(line - 1, 0)]["end"] or "\n"

    def as_written(self, fields: Mapping[str, int]) -> list[str]:
        """New fields, with quotes around their names if the first one has them."""
        quote = getattr(self.first, "style", None) or ""
        return [f"{quote}{name}{quote}: {value}" for name, value in fields.items()]

    def replaced(self, name: str, value: int) -> _Change:
        """Another value for a number or an alias; an anchor before it stays."""
        node = self.entries[name][1]
        end = self.at(node.end_mark)
        word = self.text[self.at(node.start_mark) : end].split()[-1]
        return _Change(end - len(word), end, str(value))

    def inserted_in_braces(self, fields: Mapping[str, int]) -> Iterator[_Change]:
        """Beside the other field, else before the first one: on a line of its own if that starts a line."""
        new = ", ".join(self.as_written(fields))
        if "takes" in self.entries:
            end = self.at(self.entries["takes"][1].end_mark)
            yield _Change(end, end, f", {new}")
            return
        key, _ = self.entries.get("pick", (self.first, self.first))
        start = self.at(key.start_mark)
        indent = self.text[self.lines[key.start_mark.line].start() : start]
        starts_line = key is self.first and not indent.strip()
        line_break = self.line_break(key.start_mark.line)
        yield _Change(start, start, f"{new},{line_break}{indent}" if starts_line else f"{new}, ")

    def inserted_as_lines(self, fields: Mapping[str, int]) -> Iterator[_Change]:
        """After the other field, else after the last one on a single line, a longer one, or before all."""

        def rank(numbered: tuple[int, tuple[Node, Node]]) -> tuple[bool, bool, int]:
            index, (key, value) = numbered
            return key.value not in ("takes", "pick"), value.start_mark.line != value.end_mark.line, -index

        new = self.as_written(fields)
        entries = [entry for _, entry in sorted(enumerate(self.entries.values()), key=rank)]
        for indent in (" " * column for column in self.columns):
            for _, value in entries:
                if isinstance(value, CollectionNode) and not value.flow_style:
                    continue  # its end mark is behind the comments that follow it
                end = value.end_mark
                is_block_of_text = end.column == 0 and end.line > value.start_mark.line
                line = end.line - is_block_of_text
                at, line_break = self.lines[line].start("end"), self.line_break(line)
                yield _Change(at, at, "".join(f"{line_break}{indent}{each}" for each in new))
            at, line_break = self.at(self.first.start_mark), self.line_break(self.first.start_mark.line)
            yield _Change(at, at, "".join(f"{each}{line_break}{indent}" for each in new))


def _edited(text: str, clip: Node, fields: Mapping[str, int]) -> Iterator[str]:
    """The text with the fields written into the clip, in one way after another; not all keep the rest."""
    if not isinstance(clip, MappingNode):
        return
    source = _Source(text, clip)
    replaced = [source.replaced(name, value) for name, value in fields.items() if name in source.entries]
    missing = {name: value for name, value in fields.items() if name not in source.entries}
    insert = source.inserted_in_braces if clip.flow_style else source.inserted_as_lines
    for changes in ([*replaced, each] for each in insert(missing)) if missing else [replaced]:
        edited = text
        for change in sorted(changes, reverse=True):
            edited = edited[: change.start] + change.new + edited[change.end :]
        yield edited
