"""Contact sheets: every clip's anchor after fit, as the model sees it, with prompt and timing."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from svi_story.files import atomic_file, disk, make_folder, open_regular, remove_stale_temps
from svi_story.plan.timing import timecode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from PIL import Image, ImageFont

    from svi_story.cache.outputs import Outputs
    from svi_story.plan.model import Anchor, Card, FilmPlan, Shot, Size


CLIPS_PER_SHEET = 240
"""More make several sheets: one of all would be too large to open, or too small to read."""

GRIDS = (
    (1, 1, 832),
    (4, 2, 640),
    (9, 3, 480),
    (20, 4, 400),
    (48, 6, 320),
    (120, 10, 280),
    (CLIPS_PER_SHEET, 14, 264),
)
"""For so many clips at most: columns, and the width of a cell."""
MARGIN = 24
GAP = 14
PAD = 12
FACTS = 3
"""Lines of a clip's name and numbers, above its prompt."""
STRIPE = 5
"""Height of the coloured line that clips of one chain share."""
TALLEST = Fraction(4, 5)
"""Height of a thumbnail at most, in widths of a cell."""
NARROWEST_TEXT = Fraction(2, 5)
"""What a picture leaves of a cell's width for the text to stand beside it, not below."""


class Box(NamedTuple):
    """A part of the sheet."""

    left: int
    top: int
    width: int
    height: int

    def at(self, left: int, top: int) -> Box:
        """The same part of something that begins at another place."""
        return self._replace(left=self.left + left, top=self.top + top)


@dataclass(frozen=True)
class Sheet:
    """One contact sheet: a header, and below it a cell for every clip."""

    clips: int
    columns: int
    cell: tuple[int, int]
    """Width and height."""
    thumb: Box
    """Within its cell."""
    text: Box
    """Within its cell."""
    type_size: int
    """Height of the em."""
    header: int
    """Height of the header, its margin included."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole sheet."""
        rows = ceil(self.clips / self.columns)
        width = 2 * MARGIN + self.columns * (self.cell[0] + GAP) - GAP
        return width, self.header + rows * (self.cell[1] + GAP) - GAP + MARGIN

    def cell_of(self, index: int) -> Box:
        """Where the cell of a clip is, counted on this sheet."""
        row, column = divmod(index, self.columns)
        left = MARGIN + column * (self.cell[0] + GAP)
        return Box(left, self.header + row * (self.cell[1] + GAP), *self.cell)

    def thumb_of(self, index: int) -> Box:
        """Where the picture of a clip is, counted on this sheet."""
        return self.thumb.at(*self.cell_of(index)[:2])

    def text_of(self, index: int) -> Box:
        """Where the words about a clip are, counted on this sheet."""
        return self.text.at(*self.cell_of(index)[:2])


def lay_out(plan: FilmPlan) -> tuple[Sheet, ...]:
    """The sheets of a film, alike but for the last one's number of clips."""
    return arrange(len(plan.shots), plan.size)


def arrange(count: int, film: Size) -> tuple[Sheet, ...]:
    """The sheets of so many clips of a film of this size."""
    _, columns, width = next(grid for grid in GRIDS if min(count, CLIPS_PER_SHEET) <= grid[0])
    starts = range(0, count, CLIPS_PER_SHEET)
    sizes = [min(CLIPS_PER_SHEET, count - start) for start in starts]
    return tuple(_sheet(size, min(columns, max(sizes)), width, film) for size in sizes)


def _sheet(clips: int, columns: int, width: int, film: Size) -> Sheet:
    size = min(max(width // 25, 13), 20)
    inner = width - 2 * PAD
    scale = min(Fraction(width, film.width), width * TALLEST / film.height, Fraction(1))
    picture = max(round(film.width * scale), 1), max(round(film.height * scale), 1)
    beside = inner - picture[0]
    if picture[1] > size * 12 and beside >= NARROWEST_TEXT * width:
        thumb = Box(0, STRIPE, *picture)
        text = Box(picture[0] + PAD, STRIPE + PAD, beside, picture[1] - 2 * PAD)
        return Sheet(clips, columns, (width, STRIPE + picture[1]), thumb, text, size, _header(size))
    thumb = Box((width - picture[0]) // 2, STRIPE, *picture)
    text = Box(PAD, STRIPE + picture[1] + PAD, inner, _text_height(size, width))
    cell = width, text.top + text.height + PAD
    return Sheet(clips, columns, cell, thumb, text, size, _header(size))


def _text_height(size: int, width: int) -> int:
    """Room for the facts and for as much of a prompt as a cell of this width wants."""
    lines = 6 if width > 640 else 4 if width > 480 else 5 if width >= 400 else 4
    return (FACTS + lines) * line_height(size) + size // 3


def line_height(size: int) -> int:
    """From one base line to the next, as in the pictures room."""
    return ceil(size * 1.4)


def _header(size: int) -> int:
    return MARGIN + title_size(size) * 2 + 2 * size + MARGIN // 2


def title_size(size: int) -> int:
    """Type size of the film's title."""
    return max(26, size * 3 // 2)


PAPER = (18, 19, 23)
CARD = (33, 35, 42)
INK = (236, 237, 240)
DIM = (158, 162, 173)
ACCENT = (255, 204, 92)
CHAINS = ((94, 158, 255), (255, 138, 101), (111, 207, 151), (206, 147, 240), (240, 201, 90), (92, 205, 214))
"""One colour for each chain, in turn."""
ELLIPSIS = "…"
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"
RGB8 = bytes((8, 2, 0, 0, 0))
"""Depth, colour type, and how a PNG is stored."""
HEAD = 2**16
WIDEST = 20_000
EMPTY_ROWS = 8
"""At a sheet's top; the first is filtered by the pixel on the left, the others by the row above."""
COMPRESSION = 2
"""Of 9: a sheet of 240 clips is written in a third of the time, a tenth larger."""


def write_preview(plan: FilmPlan, film: Path, outputs: Outputs | None = None) -> tuple[Path, ...]:
    """Draw a film's contact sheets and put them beside its place; our sheets of a longer board go away.

    Raises InputError for an image that cannot be read any more, RenderError where it cannot be written.
    """
    publish = outputs.file if outputs else atomic_file
    paths = []
    remove_stale_temps(film.absolute().parent)
    for number, sheet in enumerate(draw_sheets(plan), 1):
        path = sheet_path(film, number)
        raw = io.BytesIO()
        sheet.save(raw, "PNG", compress_level=COMPRESSION)
        with disk(path, "writing the contact sheet"):
            make_folder(path.parent)
            with publish(path) as temporary:
                temporary.write_bytes(raw.getvalue())
        paths.append(path)
    outdated = sheet_path(film, len(paths) + 1)
    while is_sheet(outdated) and not outdated.is_symlink():
        with disk(outdated, "removing the contact sheet of a longer board"):
            outdated.unlink()
        outdated = sheet_path(film, int(outdated.stem.rpartition("-")[2]) + 1)
    return tuple(paths)


def is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet as svi-story writes it: its chunks, and the empty rows at its top.

    No more than these rows is decoded. A program that saves the picture again leaves other traces.
    """
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
            file.seek(-len(PNG_END), os.SEEK_END)
            end = file.read()
        (width,) = struct.unpack(">I", head[16:20])
        chunks = (head[:16], head[24:29], head[37:41], end)
        if chunks != (PNG_START, RGB8, b"IDAT", PNG_END) or width > WIDEST:
            return False
        first, other = bytes((1, *PAPER)) + bytes(3 * width - 3), b"\2" + bytes(3 * width)
        empty = first + other * (EMPTY_ROWS - 1)
        return zlib.decompressobj().decompress(head[41:], len(empty)) == empty
    except (OSError, ValueError, struct.error, zlib.error):
        return False


def sheet_path(film: Path, number: int) -> Path:
    """Where a contact sheet lies, counted from 1: beside the film."""
    return film.with_suffix(".preview.png" if number == 1 else f".preview-{number}.png")


def draw_sheets(plan: FilmPlan) -> Iterator[Image.Image]:
    """The contact sheets of a film, RGB, one after the other."""
    sheets = lay_out(plan)
    starts, chains = _starts(plan), _chains(plan)
    thumbs: dict[str, Image.Image] = {}
    for number, sheet in enumerate(sheets):
        first = number * CLIPS_PER_SHEET
        page = _paper(plan, sheet, f"{number + 1} of {len(sheets)}" if len(sheets) > 1 else "")
        for index in range(sheet.clips):
            shot = plan.shots[first + index]
            anchor = shot.segments[0].anchor
            if anchor.pixels not in thumbs:
                thumbs[anchor.pixels] = _thumb(anchor, sheet.thumb)
            _card(page, sheet.cell_of(index), CHAINS[chains[first + index] % len(CHAINS)])
            page.paste(thumbs[anchor.pixels], sheet.thumb_of(index)[:2])
            words = (_follows(plan, first + index), *_facts(plan, shot, starts[first + index]))
            _write_cell(page, sheet, sheet.text_of(index), shot, words)
        yield page


def _starts(plan: FilmPlan) -> list[int]:
    """Where every clip starts in the film, in frames at the board's rate."""
    frame = plan.cut.title_card.frames if plan.cut.title_card else 0
    starts = []
    for shot in plan.shots:
        frame -= shot.fade
        starts.append(frame)
        frame += shot.frames
    return starts


def _chains(plan: FilmPlan) -> list[int]:
    """Which chain every clip belongs to, counted from 0."""
    chain, chains = -1, []
    for shot in plan.shots:
        chain += shot.starts_chain
        chains.append(chain)
    return chains


def _thumb(anchor: Anchor, box: Box) -> Image.Image:
    """An anchor as the model sees it, no larger than its box."""
    from PIL import Image

    from svi_story.media.guard import fitted_picture

    seen = fitted_picture(anchor.path, anchor.size.width, anchor.size.height, anchor.fit)
    picture = Image.fromarray(seen)
    size = (box.width, box.height)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _paper(plan: FilmPlan, sheet: Sheet, page: str) -> Image.Image:
    """A sheet with nothing but its header."""
    from PIL import Image, ImageDraw

    paper = Image.new("RGB", sheet.size, PAPER)
    size, width = title_size(sheet.type_size), sheet.size[0] - 2 * MARGIN
    _draw_words(paper, (MARGIN, MARGIN - size // 4), plan.title, (size, width, 1))
    line = _shortened(_summary(plan, page), _font(sheet.type_size), width)
    top = MARGIN + size * 3 // 2
    ImageDraw.Draw(paper).text((MARGIN, top), line, DIM, _font(sheet.type_size))
    return paper


def _summary(plan: FilmPlan, page: str) -> str:
    rates = f"{plan.fps} fps"
    if plan.cut.fps != plan.fps:
        rates += f" (film: {plan.cut.fps})"
    chains = sum(shot.starts_chain for shot in plan.shots)
    parts = [
        f"sheet {page}" if page else "",
        _counted(len(plan.shots), "clip"),
        _counted(chains, "chain"),
        f"{plan.seconds:.2f} s",
        f"{plan.frames} frames",
        rates,
        str(plan.size),
        f"fit: {plan.shots[0].segments[0].anchor.fit}",
        f"engine {plan.engine}",
        *(f"{name} {_seconds(card.frames / plan.fps)}" for name, card in _cards(plan)),
    ]
    return "  ·  ".join(part for part in parts if part)


def _cards(plan: FilmPlan) -> Iterator[tuple[str, Card]]:
    for name, card in (("title card", plan.cut.title_card), ("end card", plan.cut.end_card)):
        if card:
            yield name, card


def _card(page: Image.Image, cell: Box, colour: tuple[int, int, int]) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(page)
    right, bottom = cell.left + cell.width - 1, cell.top + cell.height - 1
    draw.rounded_rectangle(
        (cell.left, cell.top + STRIPE, right, bottom), 8, CARD, corners=(False, False, True, True)
    )
    draw.rectangle((cell.left, cell.top, right, cell.top + STRIPE - 1), colour)


def _follows(plan: FilmPlan, index: int) -> str:
    """How a clip follows the one before."""
    shot = plan.shots[index]
    if index == 0:
        return "start"
    if not shot.starts_chain:
        return "continues"
    if shot.fade:
        return f"fade {_seconds(shot.fade / plan.fps)}"
    return f"dip {_seconds(shot.dip / plan.fps)}" if shot.dip else "cut"


def _facts(plan: FilmPlan, shot: Shot, start: int) -> tuple[str, ...]:
    """Where a clip is in the film, and what it is made of."""
    return (
        f"{timecode(start, plan.fps)} – {timecode(start + shot.frames, plan.fps)}",
        _seconds(shot.frames / plan.fps),
        _counted(len(shot.segments), "segment"),
        f"seed {shot.seed}",
    )


def _write_cell(page: Image.Image, sheet: Sheet, box: Box, shot: Shot, words: Sequence[str]) -> None:
    """Write about a clip; `words` are how it follows the one before, when it is seen, and facts."""
    from PIL import ImageDraw

    font, line = _font(sheet.type_size), line_height(sheet.type_size)
    draw = ImageDraw.Draw(page)
    follows, when, *facts = words
    mark = font.getlength(follows)
    name = _shortened(shot.id, font, box.width - mark - sheet.type_size)
    draw.text((box.left, box.top), name, ACCENT, font)
    draw.text((box.left + box.width - mark, box.top), follows, INK if shot.starts_chain else DIM, font)
    lines = [when, *_broken(facts, font, box.width)]
    for row, told in enumerate(lines, 1):
        draw.text((box.left, box.top + row * line), _shortened(told, font, box.width), DIM, font)
    top = box.top + (1 + len(lines)) * line + sheet.type_size // 3
    room = (box.top + box.height - top) // line
    if room > 0:
        _draw_words(page, (box.left, top), " ".join(shot.prompt.split()), (sheet.type_size, box.width, room))


def _broken(facts: Sequence[str], font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Facts on as few lines as they fit on."""
    lines = [facts[0]]
    for fact in facts[1:]:
        longer = f"{lines[-1]} · {fact}"
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fact)
    return lines


def _draw_words(page: Image.Image, corner: tuple[int, int], words: str, room: tuple[int, int, int]) -> None:
    """Write words in any script: `room` is the type's size, the width of a line, and the lines."""
    from PIL import Image

    from svi_story.media.text import TextStyle, draw_text

    style = TextStyle(*room, colour=INK)
    drawn = Image.fromarray(draw_text(words, style))
    page.paste(drawn, (corner[0] - style.margin, corner[1] - style.margin), drawn)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """For ids and numbers, which are plain ASCII; there are thousands of them on a sheet."""
    from PIL import ImageFont

    from svi_story.media.text import BUNDLED, FOLDER

    return ImageFont.truetype(FOLDER / BUNDLED["Noto Sans"], size, layout_engine=ImageFont.Layout.BASIC)


def _shortened(words: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of a line as there is room for."""
    if font.getlength(words) <= width:
        return words
    kept = words
    while kept and font.getlength(kept + ELLIPSIS) > width:
        kept = kept[:-1]
    return kept.rstrip(" ·") + ELLIPSIS


def _seconds(seconds: Fraction) -> str:
    return f"{float(seconds):.2f} s"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
