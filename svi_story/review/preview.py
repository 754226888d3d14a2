"""What the model will see: a contact sheet of every clip's anchor after fit, with words and timing."""

from __future__ import annotations

import io
import os
import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

from svi_story.files import atomic_file, disk, make_folder, open_regular, remove_stale_temps
from svi_story.plan.timing import timecode
from svi_story.review.sheet import CLIPS_PER_SHEET, MARGIN, STRIPE, lay_out, line_height, title_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from fractions import Fraction
    from pathlib import Path

    from PIL import Image, ImageFont

    from svi_story.cache.outputs import Outputs
    from svi_story.plan.model import Anchor, Card, FilmPlan, Shot
    from svi_story.review.sheet import Box, Sheet

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

    from svi_story.media.fonts import BUNDLED, FOLDER

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
