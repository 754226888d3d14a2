"""The edit list against a film that is put together frame by frame, in the plainest way."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svi_story.cut.timeline import FilmFrame, Piece, Source, Span, Strip, edit_list, film_frames, shown


@st.composite
def films(draw: st.DrawFn) -> list[Strip]:
    """Strips whose fades fit; some keys appear twice, as equal chains of one film do."""
    strips: list[Strip] = []
    room = 0
    for number in range(draw(st.integers(0, 6))):
        spans = draw(
            st.lists(
                st.builds(
                    lambda key, start, frames: Span(key, start, start + frames),
                    st.sampled_from("abcdef"),
                    st.integers(0, 5),
                    st.integers(1, 6),
                ),
                min_size=1,
                max_size=4,
            )
        )
        frames = sum(span.stop - span.start for span in spans)
        fade = draw(st.integers(0, min(room, frames))) if strips else 0
        strips.append(Strip(f"clip-{number}", tuple(spans), fade))
        room = frames - fade
    return strips


def frame_by_frame(strips: list[Strip]) -> list[FilmFrame]:
    film: list[FilmFrame] = []
    for strip in strips:
        contribution = [
            FilmFrame(Source(span.key, k)) for span in strip.spans for k in range(span.start, span.stop)
        ]
        for i in range(strip.fade):
            outgoing = film[len(film) - strip.fade + i].over
            weight = Fraction(i + 1, strip.fade + 1)
            contribution[i] = FilmFrame(contribution[i].over, outgoing, weight)
        film[len(film) - strip.fade :] = contribution
    return film


@given(films())
def test_every_frame_of_the_film_is_the_right_one(strips: list[Strip]) -> None:
    film = list(film_frames(edit_list(strips)))
    assert film == frame_by_frame(strips)
    assert len(film) == sum(strip.frames - strip.fade for strip in strips)


@given(films())
def test_pieces_are_whole_parts_of_segments(strips: list[Strip]) -> None:
    pieces = edit_list(strips)
    assert all(piece.frames > 0 for piece in pieces)
    assert all(len(piece.spans) == 1 for piece in pieces if not piece.under)
    assert [piece.clip for piece in pieces] == sorted(piece.clip for piece in pieces)
    for strip in strips:
        mine = [piece for piece in pieces if piece.clip == strip.clip]
        plain = [piece for piece in mine if not piece.under]
        assert len(plain) <= len(strip.spans)
        assert [piece.frames for piece in mine if piece.under] == [strip.fade] * bool(strip.fade)


@given(films(), st.sets(st.sampled_from("abcdef")))
def test_a_preview_is_what_can_be_made_without_a_gap(strips: list[Strip], made: set[str]) -> None:
    pieces = edit_list(strips)
    leading = shown(pieces, made.__contains__)
    assert leading == pieces[: len(leading)]
    assert all(piece.keys <= made for piece in leading)
    assert leading == pieces or not pieces[len(leading)].keys <= made


def test_a_fade_longer_than_a_segment_takes_parts_of_several() -> None:
    strips = [
        Strip("a", (Span("a1", 0, 81), Span("a2", 1, 5), Span("a3", 1, 4))),
        Strip("b", (Span("b1", 0, 3), Span("b2", 1, 81)), fade=9),
    ]
    assert edit_list(strips) == (
        Piece((Span("a1", 0, 79),), clip="a"),
        Piece(
            (Span("b1", 0, 3), Span("b2", 1, 7)),
            (Span("a1", 79, 81), Span("a2", 1, 5), Span("a3", 1, 4)),
            "b",
        ),
        Piece((Span("b2", 7, 81),), clip="b"),
    )


def test_a_fade_repeats_neither_neighbour() -> None:
    fade = Piece((Span("b", 0, 3),), (Span("a", 5, 8),))
    assert [frame.weight for frame in film_frames([fade])] == [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)]


def test_no_strips_make_no_pieces() -> None:
    assert edit_list([]) == ()


@pytest.mark.parametrize(
    ("strips", "message"),
    [
        ([Strip("a", (Span("a", 0, 9),), fade=1)], "nothing to fade from"),
        (
            [Strip("a", (Span("a", 0, 9),)), Strip("b", (Span("b", 0, 5),), fade=6)],
            "clip b: fades of 6 and 0",
        ),
        (
            [Strip("a", (Span("a", 0, 5),)), Strip("b", (Span("b", 0, 9),), fade=6)],
            "clip a: fades of 0 and 6",
        ),
        (
            [
                Strip("a", (Span("a", 0, 9),)),
                Strip("b", (Span("b", 0, 9),), fade=5),
                Strip("c", (Span("c", 0, 9),), fade=5),
            ],
            "clip b: fades of 5 and 5",
        ),
        ([Strip("a", (Span("a", 0, 9),)), Strip("b", (Span("b", 0, 5),), fade=-1)], "negative"),
    ],
)
def test_fades_that_do_not_fit_are_refused(strips: list[Strip], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit_list(strips)


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (4, 3), (-1, 3)])
def test_a_span_is_never_empty(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="start < stop"):
        Span("a", start, stop)


def test_both_sides_of_a_fade_are_equally_long() -> None:
    with pytest.raises(ValueError, match="as many"):
        Piece((Span("b", 0, 3),), (Span("a", 0, 4),))


@pytest.mark.parametrize("index", [-1, 3])
def test_a_piece_has_no_frames_outside_itself(index: int) -> None:
    with pytest.raises(IndexError):
        Piece((Span("a", 5, 8),)).frame(index)
