"""The contact sheet: every anchor as the model sees it, where it belongs; any text, any size, any number."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from svi_story.media.images import fit_picture, open_picture
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.model import Size
from svi_story.plan.resolve import plan_film
from svi_story.review.contact_sheet import (
    CLIPS_PER_SHEET,
    Rect,
    Sheet,
    arrange,
    lay_out,
    sheet_path,
    write_preview,
)
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended
    from numpy.typing import NDArray

    from svi_story.plan.model import FilmPlan

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

HOSTILE = [
    "قطة برتقالية جالسة على حافة النافذة", "一只橘猫坐在窗台上", "बिल्ली खिड़की पर बैठी है", "👩‍👩‍👧 🇯🇵 ❤️‍🔥",
    "#set page(width: 1pt) $ [*bold*] <b>&amp;</b> \\u{0}", "x" * 9000, "\u202eevil \u200b\u2066",
    "a\n\n\n\n\n\nb", "e" + "\u0301" * 3000, "a \U0010ffff \ue000",
]  # fmt: skip


def planned(board: Path) -> FilmPlan:
    return plan_film(load(board), Fingerprints(board.parent / "memo.json"))


def drawn(board: Path) -> tuple[FilmPlan, NDArray[np.uint8]]:
    """A board's plan, and its only sheet, decoded."""
    plan = planned(board)
    (path,) = write_preview(plan, board.with_suffix(".mp4"))
    return plan, decoded(path)


def decoded(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.array(image)


def part(pixels: NDArray[np.uint8], box: Rect) -> NDArray[np.uint8]:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def other_picture(path: Path, seed: int = 1) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (7, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((220, 140), Image.Resampling.BICUBIC).save(path)
    return path


def clip(**fields: Any) -> dict[str, Any]:
    return {"prompt": "The fog is drifting over the hills.", **fields}


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", ["832x480", "160x96", "96x160", "128x128", "1280x720", "480x832"])
def test_every_anchor_is_where_it_belongs(write_board: Write, tmp_path: Path, size: str, fit: str) -> None:
    other = other_picture(tmp_path / "other.png")
    clips = [clip(), clip(), clip(transition="cut", reference="other.png"), clip(), clip(transition="cut")]
    plan, pixels = drawn(write_board(resolution=size, fit=fit, clips=clips))
    (sheet,) = lay_out(plan)
    assert pixels.shape == (sheet.size[1], sheet.size[0], 3)
    for index, name in enumerate(["anchor.png", "anchor.png", other.name, other.name, "anchor.png"]):
        box = sheet.thumb_of(index)
        seen = fit_picture(open_picture(tmp_path / name), plan.size.width, plan.size.height, fit)  # type: ignore[arg-type]  # one of the three
        if (box.width, box.height) != (plan.size.width, plan.size.height):
            small = Image.fromarray(seen).resize((box.width, box.height), Image.Resampling.LANCZOS)
            seen = np.array(small)
        assert np.array_equal(part(pixels, box), seen), index


def test_words_stay_in_their_cell(write_board: Write) -> None:
    plan, before = drawn(write_board(clips=[clip(), clip(), clip(), clip(), clip()]))
    (sheet,) = lay_out(plan)
    for prompt in HOSTILE:
        _, after = drawn(write_board(clips=[clip(), clip(), clip(prompt=prompt), clip(), clip()]))
        changed = (before != after).any(axis=2)
        assert changed.any(), prompt[:20]
        cell, thumb = sheet.cell_of(2), sheet.thumb_of(2)
        assert np.array_equal(part(before, thumb), part(after, thumb)), prompt[:20]
        changed[cell.top : cell.top + cell.height, cell.left : cell.left + cell.width] = False
        assert not changed.any(), prompt[:20]


@pytest.mark.parametrize("title", ["قطة", "猫の夢", "y" * 2000, "#let x = 1", "a [/bold] b"])
def test_any_title_stays_in_the_header(write_board: Write, title: str) -> None:
    plan, before = drawn(write_board(title="-"))
    _, after = drawn(write_board(title=title))
    (sheet,) = lay_out(plan)
    changed = (before != after).any(axis=2)
    assert changed.any()
    assert not changed[sheet.header :].any()


def test_it_shows_how_clips_follow_and_when(write_board: Write) -> None:
    def cell(**fields: Any) -> bytes:
        plan, pixels = drawn(write_board(clips=[clip(), clip(**fields)]))
        return part(pixels, lay_out(plan)[0].cell_of(1)).tobytes()

    cells = [
        cell(),
        cell(transition="cut"),
        cell(transition={"fade": "0.5s"}),
        cell(transition={"dip": "0.5s"}),
    ]
    cells += [cell(seed=5), cell(id="fog"), cell(frames=9), cell(duration="3s")]
    assert len(set(cells)) == len(cells)


def test_a_title_card_moves_the_times(write_board: Write) -> None:
    plan, before = drawn(write_board())
    _, after = drawn(write_board(cut={"title_card": "Fog"}))
    for index in range(3):
        text = lay_out(plan)[0].text_of(index)
        assert (part(before, text) != part(after, text)).any()


def test_the_same_board_makes_the_same_bytes(write_board: Write) -> None:
    board = write_board()
    (path,) = write_preview(planned(board), board.with_suffix(".mp4"))
    first = path.read_bytes()
    assert write_preview(planned(board), board.with_suffix(".mp4")) == (path,)
    assert path.read_bytes() == first
    assert path.name == "board.preview.png"
    assert not list(path.parent.glob(".tmp*"))


def test_long_films_make_several_sheets_and_shorter_ones_take_them_away(write_board: Write) -> None:
    count = CLIPS_PER_SHEET + 3
    board = write_board(clips=[clip()] * count, engine={"max_frames": 5})
    film = board.with_suffix(".mp4")
    plan = planned(board)
    paths = write_preview(plan, film)
    assert [path.name for path in paths] == ["board.preview.png", "board.preview-2.png"]
    sheets = lay_out(plan)
    assert [sheet.clips for sheet in sheets] == [CLIPS_PER_SHEET, 3]
    anchor = fit_picture(open_picture(board.parent / "anchor.png"), 64, 64, "crop")
    for path, sheet in zip(paths, sheets, strict=True):
        pixels = decoded(path)
        for index in range(sheet.clips):
            assert np.array_equal(part(pixels, sheet.thumb_of(index)), anchor)
    sheet_path(film, 3).write_bytes(paths[1].read_bytes())
    sheet_path(film, 4).write_bytes(b"no sheet")
    assert write_preview(planned(write_board()), film) == paths[:1]
    left = sorted(path.name for path in board.parent.glob("*preview*"))
    assert left == ["board.preview-4.png", "board.preview.png"]


def inside(inner: Rect, outer: Rect) -> bool:
    return (
        outer.left <= inner.left
        and outer.top <= inner.top
        and inner.left + inner.width <= outer.left + outer.width
        and inner.top + inner.height <= outer.top + outer.height
    )


def apart(one: Rect, other: Rect) -> bool:
    return (
        one.left + one.width <= other.left
        or other.left + other.width <= one.left
        or one.top + one.height <= other.top
        or other.top + other.height <= one.top
    )


@given(st.integers(1, 1000), st.integers(1, 256), st.integers(1, 256))
def test_any_number_of_clips_of_any_shape_has_its_place(count: int, width: int, height: int) -> None:
    sheets = arrange(count, Size(16 * width, 16 * height))
    assert sum(sheet.clips for sheet in sheets) == count
    for sheet in sheets:
        check_sheet(sheet, Size(16 * width, 16 * height))


def check_sheet(sheet: Sheet, film: Size) -> None:
    paper = Rect(0, 0, *sheet.size)
    assert sheet.size[0] * sheet.size[1] < 60_000_000
    assert max(sheet.size) < 12_000
    for index in {0, sheet.clips // 2, sheet.clips - 1}:
        cell, thumb, text = sheet.cell_of(index), sheet.thumb_of(index), sheet.text_of(index)
        assert inside(cell, paper)
        assert cell.top >= sheet.header
        assert inside(thumb, cell)
        assert inside(text, cell)
        assert apart(thumb, text)
        assert thumb.width <= film.width
        assert abs(thumb.width * film.height - thumb.height * film.width) <= max(film.width, film.height)
        assert text.width >= 100
        for other in {index - 1, index + 1, index + sheet.columns} & set(range(sheet.clips)):
            assert apart(cell, sheet.cell_of(other))


def test_the_command_draws_boards_and_names_the_pictures(write_board: Write, svi_story: Run) -> None:
    write_board("storyboards/a.yaml", reference="../anchor.png")
    write_board("storyboards/b/c.yaml", reference="../../anchor.png")
    ended = svi_story("preview", "storyboards", "-o", "films")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == ["films/a.preview.png", "films/b/c.preview.png"]
    assert all(decoded(Path(line)).size for line in ended.out.splitlines())
    assert svi_story("preview", "storyboards/a.yaml", "--engine", "animatic").out == "renders/a.preview.png\n"


def test_what_is_wrong_is_told(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    write_board("storyboards/good.yaml", reference="../anchor.png")
    bad = write_board("storyboards/bad.yaml", reference="../gone.png")
    ended = svi_story("preview", "storyboards")
    assert (ended.code, ended.out) == (1, "renders/good.preview.png\n")
    assert 'bad.yaml:2: reference: "../gone.png" does not exist' in ended.err
    assert svi_story("preview", bad).code == 2
    assert svi_story("preview", "storyboards/good.yaml", "--engine", "wan").code == 2
    (tmp_path / "taken").write_text("a file")
    ended = svi_story("preview", "storyboards/good.yaml", "-o", "taken")
    assert (ended.code, ended.err) == (2, "taken: is not a folder; name one with -o\n")


def test_an_old_sheet_is_whole_until_the_new_one_is(
    write_board: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board()
    (path,) = write_preview(planned(board), board.with_suffix(".mp4"))
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    changed = planned(write_board(title="Another"))
    with pytest.raises(Exception, match="No space left on device; free some space"):
        write_preview(changed, board.with_suffix(".mp4"))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.glob("*preview*")] == [path.name]
