"""The metadata of a film: title, chapters, captions, the storyboard, and what made it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from svi_story import __version__
from svi_story.cut.edit_list import caption_ranges_of
from svi_story.cut.extras import Chapter, Cue, Extras, XmpFields, xmp_packet
from svi_story.enginespec import spec_of
from svi_story.plan.keys import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from svi_story.plan.keys import Json
    from svi_story.plan.model import FilmPlan

    Ranges = Mapping[str, tuple[int, int]]
    """Clip id -> its first film frame, and the first one after it."""

TOOL = f"svi-story {__version__}"

LONGEST_BEGINNING = 60
"""Characters of a prompt in a chapter's title."""

FILES = ("weights", "svi_loras", "loras")
"""Those of a segment's inputs that are hashes of a model's files."""


def extras_of(plan: FilmPlan, ranges: Ranges) -> Extras:
    """All that a film carries besides pictures and sound. Same board, same versions: same bytes.

    No date is among it: a film made again tomorrow is the same film.
    """
    return Extras(
        metadata=_metadata(plan),
        chapters=tuple(_chapters(plan, ranges)),
        captions=captions_of(plan) if plan.cut.soft else (),
        captions_on=not plan.cut.burnt,
        xmp=xmp_packet(XmpFields(plan.title, TOOL, _system(plan), _facts(plan))),
    )


def captions_of(plan: FilmPlan) -> tuple[Cue, ...]:
    """The clips' captions, for as long as they are seen."""
    ranges = caption_ranges_of(plan)
    return tuple(
        Cue(shot.caption, *ranges[shot.id])
        for shot in plan.shots
        if shot.caption.strip() and _is_seen(shot.id, ranges)
    )


def _metadata(plan: FilmPlan) -> dict[str, str]:
    """What every player shows. The storyboard's text is not here, where all players would have to load it."""
    about = {
        "tool": TOOL,
        "storyboard": plan.board.name,
        "storyboard_sha256": plan.digest,
        "engine": plan.engine,
    }
    return {"title": plan.title, "comment": json.dumps(about, ensure_ascii=False)}


def _chapters(plan: FilmPlan, ranges: Ranges) -> Iterator[Chapter]:
    """One for every clip; the cards before and after them have their own, so that lists begin at 0."""
    shown = [(shot, *ranges[shot.id]) for shot in plan.shots if _is_seen(shot.id, ranges)]
    if shown and shown[0][1]:
        yield Chapter(plan.title, 0, shown[0][1])
    for shot, start, stop in shown:
        yield Chapter(f"{shot.id}: {_beginning(shot.prompt)}", start, stop)
    card = plan.cut.end_card
    if card and shown:
        yield Chapter(_beginning(card.text), shown[-1][2], plan.frames)


def _is_seen(clip: str, ranges: Ranges) -> bool:
    """Whether a clip has frames of its own, besides those it shares with the one that fades in over it."""
    first, stop = ranges.get(clip, (0, 0))
    return first < stop


def _beginning(prompt: str) -> str:
    """The first words, on one line."""
    text = " ".join(prompt.split())
    if len(text) <= LONGEST_BEGINNING:
        return text
    cut = text[:LONGEST_BEGINNING]
    return f"{cut.rsplit(' ', 1)[0]}…"


def _system(plan: FilmPlan) -> str:
    """The trained model that made the pictures; empty where none did."""
    return spec_of(plan.engine).system(plan.segments[0].options)


def _facts(plan: FilmPlan) -> dict[str, str]:
    """What made the film, as far as it is known before anything is rendered; the record has the rest."""
    revisions = sorted({str(segment.inputs.get("revision")) for segment in plan.segments})
    facts = {
        "storyboard": plan.source,
        "storyboardName": plan.board.name,
        "storyboardSha256": plan.digest,
        "engine": plan.engine,
        "engineRevision": ", ".join(revisions),
    }
    files = _model_files(plan)
    return facts | ({"modelFiles": files} if files else {})


def _model_files(plan: FilmPlan) -> str:
    """The hashes of all weights and LoRAs as JSON, each set once; empty where the engine has none."""
    sets: dict[bytes, Json] = {}
    for segment in plan.segments:
        inputs = segment.inputs.get("inputs")
        used = {name: inputs[name] for name in FILES if name in inputs} if isinstance(inputs, dict) else {}
        if used:
            sets.setdefault(canonical(used), used)
    return canonical(list(sets.values())).decode() if sets else ""
