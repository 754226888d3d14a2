"""Where everything goes on a contact sheet, in pixels. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from svi_story.plan.model import FilmPlan, Size

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
