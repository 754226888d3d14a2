"""Contact sheets: every clip's anchor after fit, as the model sees it, with prompt and timing."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from svi_story.files import atomic_file, disk, make_folder, open_regular, remove_stale_temps
from svi_story.media.text import BUNDLED, FOLDER, TextStyle, draw_text
from svi_story.plan.timing import timecode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from svi_story.cache.outputs import Outputs
    from svi_story.plan.model import Anchor, FilmPlan, Size


CLIPS_PER_SHEET = 240
"""Longer films get several sheets: a single one would be too large to open, or too small to read."""

GRIDS = (
    (1, 1, 832),
    (4, 2, 640),
    (9, 3, 480),
    (20, 4, 400),
    (48, 6, 320),
    (120, 10, 280),
    (CLIPS_PER_SHEET, 14, 264),
)
"""Most clips, columns, and the width of a cell."""
MARGIN = 24
GAP = 14
PAD = 12
FACT_LINES = 3
"""Lines of a clip's name and numbers, above its prompt."""
STRIPE = 5
"""Height of the coloured line that clips of one chain share."""
TALLEST = Fraction(4, 5)
"""Height of a thumbnail at most, in widths of a cell."""
NARROWEST_TEXT = Fraction(2, 5)
"""Share of a cell's width that a thumbnail must leave free for the text to be put beside it, not below."""


class Rect(NamedTuple):
    """A rectangle on the sheet, in pixels."""

    left: int
    top: int
    width: int
    height: int

    def moved(self, left: int, top: int) -> Rect:
        """The same rectangle, moved right and down."""
        return self._replace(left=self.left + left, top=self.top + top)


@dataclass(frozen=True)
class Sheet:
    """One contact sheet: a header, and below it a cell for every clip."""

    clips: int
    columns: int
    cell: tuple[int, int]
    """Width and height."""
    thumb: Rect
    """Within its cell."""
    text: Rect
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

    def cell_of(self, index: int) -> Rect:
        """The cell of a clip; clips count from this sheet's first."""
        row, column = divmod(index, self.columns)
        left = MARGIN + column * (self.cell[0] + GAP)
        return Rect(left, self.header + row * (self.cell[1] + GAP), *self.cell)

    def thumb_of(self, index: int) -> Rect:
        """The thumbnail of a clip; clips count from this sheet's first."""
        return self.thumb.moved(*self.cell_of(index)[:2])

    def text_of(self, index: int) -> Rect:
        """The text about a clip; clips count from this sheet's first."""
        return self.text.moved(*self.cell_of(index)[:2])


def lay_out(plan: FilmPlan) -> tuple[Sheet, ...]:
    """The sheets of a film; they differ only in the last one's number of clips."""
    return arrange(len(plan.shots), plan.size)


def arrange(count: int, film: Size) -> tuple[Sheet, ...]:
    """The sheets of so many clips of a film of this size."""
    _, columns, width = next(grid for grid in GRIDS if min(count, CLIPS_PER_SHEET) <= grid[0])
    starts = range(0, count, CLIPS_PER_SHEET)
    sizes = [min(CLIPS_PER_SHEET, count - start) for start in starts]
    return tuple(_sheet(size, min(columns, max(sizes)), width, film) for size in sizes)


def _sheet(clips: int, columns: int, width: int, film: Size) -> Sheet:
    size = min(max(width // 25, 13), 20)
    header = MARGIN + title_size(size) * 2 + 2 * size + MARGIN // 2
    inner = width - 2 * PAD
    scale = min(Fraction(width, film.width), width * TALLEST / film.height, Fraction(1))
    thumb_width, thumb_height = max(round(film.width * scale), 1), max(round(film.height * scale), 1)
    beside = inner - thumb_width
    if thumb_height > size * 12 and beside >= NARROWEST_TEXT * width:
        thumb = Rect(0, STRIPE, thumb_width, thumb_height)
        text = Rect(thumb_width + PAD, STRIPE + PAD, beside, thumb_height - 2 * PAD)
        return Sheet(clips, columns, (width, STRIPE + thumb_height), thumb, text, size, header)
    prompt_lines = 6 if width > 640 else 4 if width > 480 else 5 if width >= 400 else 4
    text_height = (FACT_LINES + prompt_lines) * line_height(size) + size // 3
    thumb = Rect((width - thumb_width) // 2, STRIPE, thumb_width, thumb_height)
    text = Rect(PAD, STRIPE + thumb_height + PAD, inner, text_height)
    cell = width, text.top + text.height + PAD
    return Sheet(clips, columns, cell, thumb, text, size, header)


def line_height(size: int) -> int:
    """From one base line to the next, as in `svi_story.media.text`."""
    return ceil(size * 1.4)


def title_size(size: int) -> int:
    """Type size of the film's title."""
    return max(26, size * 3 // 2)


PAPER = (18, 19, 23)
CELL = (33, 35, 42)
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
    """Draw a film's contact sheets beside the film's path, and remove sheets that a longer board left there.

    Raises InputError for an image that cannot be read any more, RenderError when writing fails.
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
    number = len(paths) + 1
    while is_sheet(outdated := sheet_path(film, number)) and not outdated.is_symlink():
        with disk(outdated, "removing the contact sheet of a longer board"):
            outdated.unlink()
        number += 1
    return tuple(paths)


def is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet as svi-story writes it: its chunks, and the empty rows at its top.

    Only these rows are decoded. An image editor that saves the sheet again writes other chunks or filters.
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
    """The path of a contact sheet, counted from 1: beside the film."""
    return film.with_suffix(".preview.png" if number == 1 else f".preview-{number}.png")


def clip_starts(plan: FilmPlan) -> list[int]:
    """Every clip's first frame in the film, at the board's rate; fades overlap, a title card comes before."""
    starts, frame = [], plan.cut.title_card.frames if plan.cut.title_card else 0
    for shot in plan.shots:
        frame -= shot.fade
        starts.append(frame)
        frame += shot.frames
    return starts


def draw_sheets(plan: FilmPlan) -> Iterator[Image.Image]:
    """The contact sheets of a film, RGB, one after the other."""
    sheets, starts = lay_out(plan), clip_starts(plan)
    chains = list(accumulate(int(shot.starts_chain) for shot in plan.shots))
    thumbs: dict[str, Image.Image] = {}
    for number, sheet in enumerate(sheets):
        page = _empty_sheet(plan, sheet, f"{number + 1} of {len(sheets)}" if len(sheets) > 1 else "")
        for index in range(sheet.clips):
            clip = number * CLIPS_PER_SHEET + index
            anchor = plan.shots[clip].segments[0].anchor
            if anchor.pixels not in thumbs:
                thumbs[anchor.pixels] = _thumbnail(anchor, sheet.thumb)
            _draw_cell(page, sheet.cell_of(index), CHAINS[(chains[clip] - 1) % len(CHAINS)])
            page.paste(thumbs[anchor.pixels], sheet.thumb_of(index)[:2])
            _write_cell(page, sheet, sheet.text_of(index), plan, clip, starts[clip])
        yield page


def _thumbnail(anchor: Anchor, box: Rect) -> Image.Image:
    """An anchor as the model sees it, no larger than its box."""
    from svi_story.media.guard import fitted_picture

    seen = fitted_picture(anchor.path, anchor.size.width, anchor.size.height, anchor.fit)
    picture = Image.fromarray(seen)
    size = (box.width, box.height)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _empty_sheet(plan: FilmPlan, sheet: Sheet, position: str) -> Image.Image:
    """A sheet with its header only: the title, and a line about the film."""
    paper = Image.new("RGB", sheet.size, PAPER)
    size, width = title_size(sheet.type_size), sheet.size[0] - 2 * MARGIN
    _draw_text(paper, (MARGIN, MARGIN - size // 4), plan.title, TextStyle(size, width, 1, colour=INK))
    cards = (("title card", plan.cut.title_card), ("end card", plan.cut.end_card))
    parts = [
        f"sheet {position}" if position else "",
        _count(len(plan.shots), "clip"),
        _count(sum(shot.starts_chain for shot in plan.shots), "chain"),
        f"{plan.seconds:.2f} s",
        f"{plan.frames} frames",
        f"{plan.fps} fps" + (f" (film: {plan.cut.fps})" if plan.cut.fps != plan.fps else ""),
        str(plan.size),
        f"fit: {plan.shots[0].segments[0].anchor.fit}",
        f"engine {plan.engine}",
        *(f"{name} {_seconds(card.frames / plan.fps)}" for name, card in cards if card),
    ]
    line = _shortened("  ·  ".join(part for part in parts if part), _font(sheet.type_size), width)
    ImageDraw.Draw(paper).text((MARGIN, MARGIN + size * 3 // 2), line, DIM, _font(sheet.type_size))
    return paper


def _draw_cell(page: Image.Image, cell: Rect, colour: tuple[int, int, int]) -> None:
    """The background of a cell, with the stripe of its chain on top."""
    draw = ImageDraw.Draw(page)
    right, bottom = cell.left + cell.width - 1, cell.top + cell.height - 1
    draw.rounded_rectangle(
        (cell.left, cell.top + STRIPE, right, bottom), 8, CELL, corners=(False, False, True, True)
    )
    draw.rectangle((cell.left, cell.top, right, cell.top + STRIPE - 1), colour)


def _write_cell(page: Image.Image, sheet: Sheet, box: Rect, plan: FilmPlan, clip: int, start: int) -> None:
    """Write about a clip: id and transition, timing, facts, and as much of the prompt as fits."""
    font, line = _font(sheet.type_size), line_height(sheet.type_size)
    draw, shot = ImageDraw.Draw(page), plan.shots[clip]
    transition = _transition(plan, clip)
    transition_width = font.getlength(transition)
    name = _shortened(shot.id, font, box.width - transition_width - sheet.type_size)
    draw.text((box.left, box.top), name, ACCENT, font)
    corner = (box.left + box.width - transition_width, box.top)
    draw.text(corner, transition, INK if shot.starts_chain else DIM, font)
    timing = f"{timecode(start, plan.fps)} – {timecode(start + shot.frames, plan.fps)}"
    facts = [_seconds(shot.frames / plan.fps), _count(len(shot.segments), "segment"), f"seed {shot.seed}"]
    lines = [timing, *_wrapped(facts, font, box.width)]
    for row, text in enumerate(lines, 1):
        draw.text((box.left, box.top + row * line), _shortened(text, font, box.width), DIM, font)
    top = box.top + (1 + len(lines)) * line + sheet.type_size // 3
    rows = (box.top + box.height - top) // line
    if rows > 0:
        style = TextStyle(sheet.type_size, box.width, rows, colour=INK)
        _draw_text(page, (box.left, top), " ".join(shot.prompt.split()), style)


def _transition(plan: FilmPlan, clip: int) -> str:
    """How a clip follows the one before."""
    shot = plan.shots[clip]
    if clip == 0:
        return "start"
    if not shot.starts_chain:
        return "continues"
    if shot.fade:
        return f"fade {_seconds(shot.fade / plan.fps)}"
    return f"dip {_seconds(shot.dip / plan.fps)}" if shot.dip else "cut"


def _wrapped(facts: Sequence[str], font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Facts on as few lines as they fit on."""
    lines = [facts[0]]
    for fact in facts[1:]:
        longer = f"{lines[-1]} · {fact}"
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fact)
    return lines


def _draw_text(page: Image.Image, corner: tuple[int, int], text: str, style: TextStyle) -> None:
    """Draw text in any script; `corner` is the top left one of its first line."""
    drawn = Image.fromarray(draw_text(text, style))
    page.paste(drawn, (corner[0] - style.margin, corner[1] - style.margin), drawn)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """For ids and numbers, which are plain ASCII; there are thousands of them on a sheet."""
    return ImageFont.truetype(FOLDER / BUNDLED["Noto Sans"], size, layout_engine=ImageFont.Layout.BASIC)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """As much of a line as fits, with an ellipsis when that is not all of it."""
    if font.getlength(text) <= width:
        return text
    kept = text
    while kept and font.getlength(kept + ELLIPSIS) > width:
        kept = kept[:-1]
    return kept.rstrip(" ·") + ELLIPSIS


def _seconds(seconds: Fraction) -> str:
    return f"{float(seconds):.2f} s"


def _count(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
