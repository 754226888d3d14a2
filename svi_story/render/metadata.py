"""The metadata of a film: title, chapters, captions, the storyboard, the engine and its model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from svi_story import __version__
from svi_story.cut.extras import Chapter, Cue, Extras, XmpFields, xmp_packet
from svi_story.cut.timeline import caption_ranges_of
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
"""The key inputs of a segment that are hashes of the model's files."""


def extras_of(plan: FilmPlan, ranges: Ranges) -> Extras:
    """Everything in a film besides pictures and sound. Same board, same versions: same bytes, so no dates.

    The storyboard's text is in the XMP packet, not in the metadata, which every player loads.
    """
    comment = {
        "tool": TOOL,
        "storyboard": plan.board.name,
        "storyboard_sha256": plan.digest,
        "engine": plan.engine,
    }
    facts = {
        "storyboard": plan.source,
        "storyboardName": plan.board.name,
        "storyboardSha256": plan.digest,
        "engine": plan.engine,
        "engineRevision": ", ".join(
            sorted({str(segment.inputs.get("revision")) for segment in plan.segments})
        ),
    }
    model_files: dict[bytes, Json] = {}
    for segment in plan.segments:
        inputs = segment.inputs.get("inputs")
        used = {name: inputs[name] for name in FILES if name in inputs} if isinstance(inputs, dict) else {}
        if used:
            model_files.setdefault(canonical(used), used)
    if model_files:
        facts["modelFiles"] = canonical(list(model_files.values())).decode()
    model = spec_of(plan.engine).system(plan.segments[0].options)
    return Extras(
        metadata={"title": plan.title, "comment": json.dumps(comment, ensure_ascii=False)},
        chapters=tuple(_chapters(plan, ranges)),
        captions=captions_of(plan) if plan.cut.soft else (),
        captions_on=not plan.cut.burnt,
        xmp=xmp_packet(XmpFields(plan.title, TOOL, model, facts)),
    )


def captions_of(plan: FilmPlan) -> tuple[Cue, ...]:
    """The clips' captions, for as long as they are visible."""
    ranges = caption_ranges_of(plan)
    return tuple(
        Cue(shot.caption, *ranges[shot.id])
        for shot in plan.shots
        if shot.caption.strip() and _is_visible(shot.id, ranges)
    )


def _chapters(plan: FilmPlan, ranges: Ranges) -> Iterator[Chapter]:
    """One for every clip, and one for each card, so that the first chapter starts at 0."""
    visible = [(shot, *ranges[shot.id]) for shot in plan.shots if _is_visible(shot.id, ranges)]
    if visible and visible[0][1]:
        yield Chapter(plan.title, 0, visible[0][1])
    for shot, start, stop in visible:
        yield Chapter(f"{shot.id}: {_beginning(shot.prompt)}", start, stop)
    card = plan.cut.end_card
    if card and visible:
        yield Chapter(_beginning(card.text), visible[-1][2], plan.frames)


def _is_visible(clip: str, ranges: Ranges) -> bool:
    """Whether a clip has frames of its own, besides those that it shares with the clip that fades in."""
    first, stop = ranges.get(clip, (0, 0))
    return first < stop


def _beginning(prompt: str) -> str:
    """The first words, on one line."""
    text = " ".join(prompt.split())
    if len(text) <= LONGEST_BEGINNING:
        return text
    cut = text[:LONGEST_BEGINNING]
    return f"{cut.rsplit(' ', 1)[0]}…"
