"""The schedule: everything that is missing once, in an order that can be done, with few model changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from fake_engine import segment
from hypothesis import given
from hypothesis import strategies as st

from svi_story.engines.base import Phase
from svi_story.render.schedule import (
    DECODER,
    FIRST,
    Work,
    chains_of,
    loads,
    schedule,
    seconds_of,
    segment_works,
    waves,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.plan.model import Segment


EXPERTS = ("high", "low")


@dataclass(frozen=True)
class Case:
    """Films to be made, and how far they are."""

    films: tuple[tuple[Segment, ...], ...]
    missing: frozenset[str]
    begun: dict[str, int]
    """Phases that are done, by key."""
    count: int
    """Phases of a segment."""
    lora_sets: dict[str, str]
    in_turns: bool
    takes: tuple[Segment, ...] = ()
    """Of takes that no film uses."""
    beside: bool = False
    needs_frames: bool = True

    @property
    def wanted(self) -> list[Segment]:
        return [*(segment for film in self.films for segment in film), *self.takes]

    @property
    def later(self) -> set[str]:
        """The keys of the takes' segments."""
        return {segment.key for segment in self.takes}

    @property
    def groups(self) -> list[tuple[Segment, ...]]:
        """The waves of all films, then those of the takes."""
        missing = {segment.key: segment for segment in self.wanted if segment.key in self.missing}
        first = [segment for key, segment in missing.items() if key not in self.later]
        return waves(first) + waves(missing[key] for key in missing if key in self.later)

    def in_waves(self) -> tuple[Work, ...]:
        """What makes the segments where models take turns."""
        return segment_works(self.wanted, self.missing, self.phases, one_at_a_time=True, later=self.later)

    def phases(self, segment: Segment) -> Sequence[Phase]:
        lora_set = self.lora_sets[segment.key]
        every = (
            Phase("vae", 0, 0, 0),
            Phase("high", 1, 4, 8, f"high {lora_set}"),
            Phase("low", 2, 10, 12, f"low {lora_set}"),
        )
        due = every[3 - self.count :][self.begun.get(segment.key, 0) :]
        return [replace(phase, needs_frames=self.needs_frames) for phase in due]

    def works(self) -> tuple[Work, ...]:
        how = {"one_at_a_time": self.in_turns, "beside": self.beside}
        return schedule(self.films, self.missing, self.phases, **how, takes=self.takes)


def film(*chains: str) -> tuple[Segment, ...]:
    """Chains as words: a segment for each letter, the same one wherever a chain begins alike."""
    return tuple(
        replace(segment(""), key=word[: end + 1], parent=word[:end] or None)
        for word in chains
        for end in range(len(word))
    )


chains = st.text("abc", min_size=1, max_size=5)
films = st.lists(st.lists(chains, min_size=1, max_size=4).map(lambda words: film(*words)), max_size=5)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    made = tuple(draw(films))
    in_films = sorted({segment.key for each in made for segment in each})
    parents = draw(st.lists(st.sampled_from(["", *in_films]), max_size=4))
    words = [(parent, draw(st.text("xy", min_size=1, max_size=2))) for parent in parents]
    takes = tuple(
        replace(segment(""), key=parent + word[: end + 1], parent=(parent + word[:end]) or None)
        for parent, word in words
        for end in range(len(word))
    )
    keys = [*in_films, *sorted({segment.key for segment in takes})]
    count = draw(st.integers(1, 3))
    missing = draw(st.sets(st.sampled_from(keys))) if keys else set()
    begun = {key: draw(st.integers(0, count)) for key in sorted(missing)}
    lora_sets = {key: draw(st.sampled_from("xyz")) for key in keys}
    chosen = [draw(st.booleans()) for _ in range(3)]
    return Case(made, frozenset(missing), begun, count, lora_sets, chosen[0], takes, *chosen[1:])


@given(cases())
def test_every_missing_segment_is_made_once_and_nothing_else(case: Case) -> None:
    works = case.works()
    decoded = [work.key for work in works if work.kind == "decode"]
    assert len(decoded) == len(set(decoded))
    assert set(decoded) == case.missing
    sampled = [(work.key, work.phase) for work in works if work.kind == "sample"]
    assert len(sampled) == len(set(sampled))
    segments = {segment.key: segment for segment in case.wanted}
    due = {(key, phase) for key in case.missing for phase in case.phases(segments[key])}
    assert set(sampled) == due


@given(cases())
def test_phases_come_in_order_and_parents_before_children(case: Case) -> None:
    works = case.works()
    parents = {segment.key: segment.parent for segment in case.wanted}
    finished: set[str] = set(parents) - case.missing
    places: dict[str, int] = {}
    over = {key for key, count in case.begun.items() if count == case.count}
    for work in works:
        if work.kind == "sample":
            assert work.phase is not None
            assert work.key not in over
            parent = parents[work.key]
            assert parent in finished | (set() if case.needs_frames else over) or parent is None
            is_awaited = case.needs_frames and parent in case.missing
            assert work.after == (parent if is_awaited else "")
            assert work.phase.place > places.get(work.key, -1)
            places[work.key] = work.phase.place
            if work.last:
                over.add(work.key)
        if work.kind == "decode":
            assert work.key in over
            assert parents[work.key] in finished or parents[work.key] is None
            finished.add(work.key)


@given(cases())
def test_texts_come_first_and_films_as_soon_as_they_can(case: Case) -> None:
    works = case.works()
    assert [place for place, work in enumerate(works) if work.kind == "text"] in ([], [0])
    assert (works[:1] == (Work("text"),)) == any(work.kind == "sample" for work in works)
    done = {segment.key for segment in case.wanted} - case.missing
    encoded: dict[int, set[str]] = {number: set() for number in range(len(case.films))}
    since_decode = 0
    for work in works:
        since_decode = 0 if work.kind in ("sample", "decode", "text") else since_decode + 1
        if work.kind == "decode":
            done.add(work.key)
        if work.kind == "encode":
            assert work.key in done
            assert work.key not in encoded[work.film]
            encoded[work.film].add(work.key)
        if work.kind == "cut":
            assert encoded[work.film] == {segment.key for segment in case.films[work.film]}
    assert sorted(work.film for work in works if work.kind == "cut") == list(range(len(case.films)))
    for number, each in enumerate(case.films):
        keys = {segment.key for segment in each}
        cut = next(place for place, work in enumerate(works) if work.kind == "cut" and work.film == number)
        last = max(
            (place for place, work in enumerate(works) if work.kind == "decode" and work.key in keys),
            default=FIRST,
        )
        assert all(work.kind in ("encode", "cut", "text") for work in works[last + 1 : cut])


@given(cases())
def test_decoding_beside_the_sampling_begins_as_soon_as_it_can(case: Case) -> None:
    works = case.works()
    assert all(work.beside == (case.beside and work.model == DECODER) for work in works)
    if not case.beside:
        return
    works = tuple(work for work in works if work.kind in ("sample", "decode"))
    for place, work in enumerate(works):
        if work.kind == "decode" and case.begun.get(work.key) != case.count:
            sampled = max(n for n, each in enumerate(works) if each.kind == "sample" and each.key == work.key)
            between = works[sampled + 1 : place]
            assert all(each.model == DECODER and each.after != work.key for each in between)


@given(cases())
def test_no_film_waits_for_a_take_that_it_does_not_use(case: Case) -> None:
    works = case.works()
    last = max((place for place, work in enumerate(works) if work.kind == "cut"), default=FIRST)
    takes = [place for place, work in enumerate(works) if work.key in case.later]
    assert all(place > last for place in takes)
    assert all(works[place].kind in ("sample", "decode") for place in takes), "no film is made of them"
    chains = chains_of(case.wanted, case.missing, case.later)
    assert [chain.keys[0] in case.later for chain in chains] == sorted(
        chain.keys[0] in case.later for chain in chains
    )
    assert sorted(key for chain in chains for key in chain.keys) == sorted(case.missing)


@given(cases())
def test_models_change_by_the_longest_chain_and_not_by_the_number_of_chains(case: Case) -> None:
    works, groups = case.in_waves(), case.groups
    needed = [
        {phase.model for segment in group for phase in case.phases(segment)} & set(EXPERTS)
        for group in groups
    ]
    assert loads(works, EXPERTS) == sum(map(len, needed))
    assert loads(works, EXPERTS) <= 2 * len(groups)


@given(cases())
def test_a_wave_uses_each_lora_set_once(case: Case) -> None:
    works = case.in_waves()
    for _, wave in groupby(works, key=lambda work: work.kind == "decode"):
        for _, run in groupby((work.phase for work in wave if work.phase), key=lambda phase: phase.place):
            worn = [lora_set for lora_set, _ in groupby(phase.lora_set for phase in run)]
            assert len(worn) == len(set(worn))


def fresh(*words: str, in_turns: bool = True, lora_sets: str = "x") -> Case:
    """Films of one chain each, none of which is begun."""
    made = tuple(film(word) for word in words)
    keys = [segment.key for each in made for segment in each]
    worn = {key: lora_sets[ord(key[0]) % len(lora_sets)] for key in keys}
    return Case(made, frozenset(keys), {}, 3, worn, in_turns)


def test_twelve_chains_of_five_change_as_often_as_one() -> None:
    twelve = fresh(*(f"{letter}1234" for letter in "abcdefghijkl"))
    assert loads(twelve.works(), EXPERTS) == loads(fresh("a1234").works(), EXPERTS) == 2 * 5
    one_by_one = fresh(*(f"{letter}1234" for letter in "abcdefghijkl"), in_turns=False)
    assert loads(one_by_one.works(), EXPERTS) == 2 * 5 * 12


def test_what_boards_share_is_made_once_and_serves_both() -> None:
    works = fresh("ab", "ac", in_turns=False).works()
    told = [f"{work.kind} {work.key or work.film}" for work in works if work.kind not in ("text", "sample")]
    assert told == [
        "decode a", "encode a", "encode a",
        "decode ab", "encode ab", "cut 0",
        "decode ac", "encode ac", "cut 1",
    ]  # fmt: skip


def test_an_expert_goes_on_with_what_it_wears() -> None:
    works = fresh("a1", "b1", "c1", "d1", lora_sets="xy").works()
    for expert in EXPERTS:
        worn = [work.phase.lora_set for work in works if work.phase and work.phase.model == expert]
        assert sum(before != after for before, after in pairwise(worn)) == 2  # once in each wave
    models = [model for model, _ in groupby(work.model for work in works if work.model)]
    assert models == ["text", "vae", "high", "low", "vae", "high", "low", "vae"]


def test_films_that_need_no_engine_are_cut_first() -> None:
    ready, due = film("ab"), film("cd")
    case = Case((due, ready), frozenset({"c", "cd"}), {}, 3, dict.fromkeys(("c", "cd"), "x"), in_turns=True)
    kinds = [(work.kind, work.film) for work in case.works()]
    assert kinds[:4] == [("text", -1), ("encode", 1), ("encode", 1), ("cut", 1)]
    assert kinds[-1] == ("cut", 0)


def test_a_segment_is_sampled_while_the_one_before_is_decoded() -> None:
    case = replace(fresh("a1", "b", in_turns=False), beside=True, needs_frames=False)
    told = [(work.key, work.model) for work in case.works() if work.kind in ("sample", "decode")]
    assert told == [
        ("a", "vae"), ("a", "high"), ("a", "low"),
        ("a1", "vae"), ("a", "vae"), ("a1", "high"), ("a1", "low"),
        ("b", "vae"), ("a1", "vae"), ("b", "high"), ("b", "low"), ("b", "vae"),
    ]  # fmt: skip
    with_frames = replace(fresh("a1", in_turns=False), beside=True).works()
    awaited = [(work.key, work.model, work.after) for work in with_frames if work.after]
    assert awaited == [("a1", "vae", "a"), ("a1", "high", "a"), ("a1", "low", "a")]
    told = [(work.key, work.model) for work in with_frames if work.kind in ("sample", "decode")]
    assert told.index(("a", "low")) + 1 == told.index(("a1", "vae")) - 1  # decoded at once


def test_chains_take_turns_where_a_segment_would_wait_for_the_one_before() -> None:
    def sampled(case: Case) -> list[str]:
        return [key for key, _ in groupby(work.key for work in case.works() if work.kind == "sample")]

    case = replace(fresh("a12", "b12", "c", in_turns=False), beside=True)
    assert sampled(case) == ["a", "b", "a1", "b1", "a12", "b12", "c"]  # two films at a time, not three
    alone = ["a", "a1", "a12", "b", "b1", "b12", "c"]
    for another in (replace(case, needs_frames=False), replace(case, beside=False)):
        assert sampled(another) == alone
    assert sampled(replace(case, begun={"a1": 3})) == ["a", "b", "a12", "b1", "c", "b12"]


def seconds(case: Case) -> float:
    """With 10 seconds for a phase, 3 for decoding and 2 for storing."""

    def each(work: Work) -> tuple[float, float]:
        return (10, 0) if work.phase else (3, 2) if work.kind == "decode" else (0, 0)

    return seconds_of(case.works(), each)


def test_time_counts_once_where_two_things_are_done_at_a_time() -> None:
    chain = fresh("a123", in_turns=False)
    assert seconds(chain) == 4 * (30 + 3 + 2)  # each waits for the frames of the one before
    latents = replace(chain, needs_frames=False)
    assert seconds(latents) == 4 * (30 + 3) + 2
    assert seconds(replace(latents, beside=True)) == 4 * 30 + 3 + 2
    assert seconds(replace(chain, beside=True)) == seconds(chain)
    two = fresh("a123", "b123", in_turns=False)
    assert seconds(two) == 2 * seconds(chain) - 2
    assert seconds(replace(two, beside=True)) == 8 * 30 + 3 + 2  # nothing waits but for the last
    chains = fresh("a", "b", "c", "d", in_turns=False)
    assert seconds(chains) == 4 * (30 + 3) + 2
    assert seconds(replace(chains, beside=True)) == 4 * 30 + 3 + 2
    assert seconds(replace(fresh("a", "b", "c", "d"), beside=True)) == 4 * 30 + 3 + 2  # in waves


def test_nothing_wanted_is_nothing_to_do() -> None:
    assert Case((), frozenset(), {}, 1, {}, in_turns=True).works() == ()
    there = Case((film("ab"),), frozenset(), {}, 1, {}, in_turns=True)
    assert {work.kind for work in there.works()} == {"encode", "cut"}
