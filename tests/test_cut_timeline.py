"""The edit list against a film that is put together frame by frame, in the plainest way."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svi_story.cut.timeline import (
    BlackFade,
    BlendedFrame,
    FrameRef,
    Piece,
    RateConversion,
    Span,
    TimelineClip,
    at_rate,
    dips,
    edit_list,
    ranges,
    with_black_fades,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


def film_frames(pieces: Iterable[Piece]) -> list[BlendedFrame]:
    """What every frame of the film shows, in order."""
    return [piece.frame(index) for piece in pieces for index in range(piece.frames)]


RATES = st.fractions(1, 16, max_denominator=24024)


@st.composite
def films(draw: st.DrawFn) -> list[TimelineClip]:
    """Strips whose fades fit; some keys appear twice, as equal chains of one film do."""
    clips: list[TimelineClip] = []
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
        fade = draw(st.integers(0, min(room, frames))) if clips else 0
        clips.append(TimelineClip(f"clip-{number}", tuple(spans), fade))
        room = frames - fade
    return clips


def frame_by_frame(clips: list[TimelineClip]) -> list[BlendedFrame]:
    film: list[BlendedFrame] = []
    for clip in clips:
        contribution = [
            BlendedFrame(FrameRef(span.key, k)) for span in clip.spans for k in range(span.start, span.stop)
        ]
        for i in range(clip.fade):
            outgoing = film[len(film) - clip.fade + i].over
            weight = Fraction(i + 1, clip.fade + 1)
            contribution[i] = BlendedFrame(contribution[i].over, outgoing, weight)
        film[len(film) - clip.fade :] = contribution
    return film


@given(films())
def test_every_frame_of_the_film_is_the_right_one(clips: list[TimelineClip]) -> None:
    film = list(film_frames(edit_list(clips)))
    assert film == frame_by_frame(clips)
    assert len(film) == sum(clip.frames - clip.fade for clip in clips)


@given(films())
def test_pieces_are_whole_parts_of_segments(clips: list[TimelineClip]) -> None:
    pieces = edit_list(clips)
    assert all(piece.frames > 0 for piece in pieces)
    assert all(len(piece.spans) == 1 for piece in pieces if not piece.under)
    assert [piece.clip for piece in pieces] == sorted(piece.clip for piece in pieces)
    for clip in clips:
        mine = [piece for piece in pieces if piece.clip == clip.id]
        plain = [piece for piece in mine if not piece.under]
        assert len(plain) <= len(clip.spans)
        assert [piece.frames for piece in mine if piece.under] == [clip.fade] * bool(clip.fade)


def test_a_fade_longer_than_a_segment_takes_parts_of_several() -> None:
    clips = [
        TimelineClip("a", (Span("a1", 0, 81), Span("a2", 1, 5), Span("a3", 1, 4))),
        TimelineClip("b", (Span("b1", 0, 3), Span("b2", 1, 81)), fade=9),
    ]
    assert edit_list(clips) == (
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
    ("clips", "message"),
    [
        ([TimelineClip("a", (Span("a", 0, 9),), fade=1)], "nothing to fade from"),
        (
            [TimelineClip("a", (Span("a", 0, 9),)), TimelineClip("b", (Span("b", 0, 5),), fade=6)],
            "clip b: fades of 6 and 0",
        ),
        (
            [TimelineClip("a", (Span("a", 0, 5),)), TimelineClip("b", (Span("b", 0, 9),), fade=6)],
            "clip a: fades of 0 and 6",
        ),
        (
            [
                TimelineClip("a", (Span("a", 0, 9),)),
                TimelineClip("b", (Span("b", 0, 9),), fade=5),
                TimelineClip("c", (Span("c", 0, 9),), fade=5),
            ],
            "clip b: fades of 5 and 5",
        ),
        ([TimelineClip("a", (Span("a", 0, 9),)), TimelineClip("b", (Span("b", 0, 5),), fade=-1)], "negative"),
    ],
)
def test_fades_that_do_not_fit_are_refused(clips: list[TimelineClip], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit_list(clips)


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


@given(films(), RATES)
def test_a_higher_rate_repeats_frames_and_loses_none(clips: list[TimelineClip], rate: Fraction) -> None:
    pieces = edit_list(clips)
    plain, film = list(film_frames(pieces)), list(film_frames(at_rate(pieces, rate)))
    assert film == [plain[floor(number / rate)] for number in range(len(film))]
    assert len(film) == ceil(len(plain) * rate)
    # every frame is seen at least once, and none much longer than its neighbours
    seen = Counter(floor(number / rate) for number in range(len(film)))
    assert all(floor(rate) <= seen[frame] <= ceil(rate) for frame in range(len(plain)))


@given(st.lists(st.integers(1, 200), max_size=20), RATES)
def test_runs_share_out_the_film_without_gap_or_overlap(runs: list[int], rate: Fraction) -> None:
    conversion, first = RateConversion(rate), 0
    for count in runs:
        assert [first + conversion.source(index) for index in range(conversion.frames(count))] == [
            floor(number / rate) for number in range(ceil(first * rate), ceil((first + count) * rate))
        ]
        conversion, first = conversion.after(count), first + count


def test_a_lower_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="lose frames"):
        at_rate((), Fraction(14, 15))


@given(films(), st.integers(0, 20), st.integers(1, 20), st.booleans())
def test_ramps_darken_the_film_wherever_its_joins_are(
    clips: list[TimelineClip], start: int, frames: int, rising: bool
) -> None:
    black_fade = BlackFade(start, frames, rising)
    film = list(film_frames(with_black_fades(edit_list(clips), [black_fade])))
    assert [frame.level for frame in film] == [black_fade.level(number) for number in range(len(film))]


def test_a_ramp_starts_or_ends_in_black() -> None:
    rising, falling = BlackFade(2, 4, rising=True), BlackFade(2, 4, rising=False)
    levels = [Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)]
    assert [rising.level(frame) for frame in range(8)] == [1, 1, *levels, 1, 1]
    assert [falling.level(frame) for frame in range(8)] == [1, 1, *reversed(levels), 1, 1]


def test_only_the_pieces_that_a_ramp_touches_know_of_it() -> None:
    pieces = edit_list([TimelineClip(name, (Span(name, 0, 9),)) for name in "abcd"])
    dark = with_black_fades(pieces, [BlackFade(7, 4, rising=True)])
    assert [piece.black_fades for piece in dark] == [
        (BlackFade(7, 4, rising=True),),
        (BlackFade(-2, 4, rising=True),),
        (),
        (),
    ]


def test_a_dip_goes_into_black_before_the_join_and_out_of_it_after() -> None:
    clips = [TimelineClip("a", (Span("a", 0, 9),)), TimelineClip("b", (Span("b", 0, 9),), dip=5)]
    assert list(dips(clips)) == [BlackFade(7, 2, rising=False), BlackFade(9, 3, rising=True)]


def test_dips_know_of_the_fades_before_them() -> None:
    clips = [
        TimelineClip("a", (Span("a", 0, 9),)),
        TimelineClip("b", (Span("b", 0, 9),), fade=4),
        TimelineClip("c", (Span("c", 0, 9),), dip=4),
    ]
    assert list(dips(clips)) == [BlackFade(12, 2, rising=False), BlackFade(14, 2, rising=True)]


@given(films(), RATES)
def test_ranges_share_out_the_film(clips: list[TimelineClip], rate: Fraction) -> None:
    found = ranges(clips, rate)
    assert list(found) == [clip.id for clip in clips]
    bounds = [bound for both in found.values() for bound in both]
    assert bounds[::2] == [0, *bounds[1:-1:2]][: len(found)]
    pieces = at_rate(edit_list(clips), rate)
    for clip, (first, stop) in found.items():
        own = [
            place
            for place, each in enumerate(p.clip for p in pieces for _ in range(p.frames))
            if each == clip
        ]
        assert own == list(range(first, stop))


def test_a_clip_that_a_fade_takes_whole_still_has_its_place() -> None:
    clips = [TimelineClip("a", (Span("a", 0, 9),)), TimelineClip("b", (Span("b", 0, 20),), fade=9)]
    assert ranges(clips, Fraction(2)) == {"a": (0, 0), "b": (0, 40)}


def test_a_caption_is_on_all_pieces_of_its_clip_and_on_the_fade_into_it() -> None:
    clips = [
        TimelineClip("a", (Span("a", 0, 9), Span("b", 1, 9)), caption="one"),
        TimelineClip("b", (Span("c", 0, 9),), fade=3, caption="two"),
    ]
    assert [(piece.clip, piece.caption) for piece in edit_list(clips)] == [
        ("a", "one"),
        ("a", "one"),
        ("b", "two"),
        ("b", "two"),
    ]
