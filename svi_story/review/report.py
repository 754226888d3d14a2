"""The review as one HTML page that needs nothing besides itself and the film."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.resources import files
from math import floor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from svi_story import __version__
from svi_story.enginespec import spec_of
from svi_story.files import atomic_file, open_regular, refusals, remove_stale_temps
from svi_story.review.film import seconds_spent
from svi_story.review.graphics import plots
from svi_story.review.thresholds import REPEAT, STEP, TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from svi_story.cache.outputs import Publish
    from svi_story.plan.model import Segment
    from svi_story.review.film import ClipReview, FilmReview, Finding, Join
    from svi_story.review.graphics import Picture, Plot


SEAM_TOP = 3.0
"""The seam plot's upper edge, in multiples of the motion around."""
MOST_SAID = 400
"""Characters that a line about versions and machines has at most."""


@dataclass(frozen=True)
class Clock:
    """Frames of the film as time."""

    fps: Fraction

    def __call__(self, frame: int) -> str:
        """As m:ss.cc, for people."""
        centis = floor(frame * 100 / self.fps + Fraction(1, 2))
        return f"{centis // 6000}:{centis // 100 % 60:02}.{centis % 100:02}"

    def seconds(self, frame: int) -> str:
        """In seconds, a little into the frame, for the player."""
        return f"{float((frame + 0.25) / self.fps):.3f}"


def clip_view(clip: ClipReview, review: FilmReview, clock: Clock) -> dict[str, Any]:
    """What a clip's card shows."""
    shot = clip.shot
    spent = seconds_spent(clip)
    return {
        "review": clip,
        "anchor": f"clip-{clip.number + 1}",
        "follows": _follows(clip),
        "seeds": ", ".join(dict.fromkeys(str(segment.seed) for segment in shot.segments)),
        "passes": " + ".join(str(segment.frames) for segment in shot.segments),
        "settings": list(_settings(shot.segments[0], review.plan.engine)),
        "spent": f"{_duration(sum(spent))}" if spent else "",
        "spent_on": f"{_duration(spent[0])} sampling, {_duration(spent[1])} decoding" if spent else "",
        "numbers": list(_numbers(clip)),
        "findings": [each for each in review.findings if each.clip == clip.number],
        "labels": _labels(len(clip.pictures)),
        "start": clock(clip.start),
        "stop": clock(clip.start + shot.frames),
    }


def _labels(count: int) -> tuple[str, ...]:
    return ("first", "middle", "last") if count == 3 else ("first", "last")[:count]


def _follows(clip: ClipReview) -> str:
    if clip.number == 0:
        return "starts the film"
    if clip.shot.fade:
        return f"fades in over {clip.shot.fade} frames"
    if clip.shot.dip:
        return f"through black, {clip.shot.dip} frames"
    return "cut" if clip.shot.starts_chain else "continues"


def _settings(segment: Segment, engine: str) -> Iterator[tuple[str, str]]:
    """What steered the sampling."""
    shown = spec_of(engine).describe(segment.options)
    if not shown:
        yield "engine", engine
        return
    yield from shown.items()
    for lora in segment.loras:
        yield "LoRA", f"{lora.path.name} {lora.high:g} / {lora.low:g}"


def _numbers(clip: ClipReview) -> Iterator[tuple[str, str]]:
    """What was measured, in short."""
    if clip.run is None:
        return
    drift, track = clip.run.drift.total[clip.frames], clip.run.track[clip.frames]
    yield "drift", f"{np.median(drift):.1f} ΔE, at most {drift.max():.1f}"
    yield "sharpness", f"{np.median(track.sharpness):.2f}"
    yield "motion", f"{np.median(track.moving) * float(clip.run.fps) / 10:.1f} %/s"
    spread = track.spread.mean(axis=0)
    mean = track.mean.mean(axis=0)
    yield "L* a* b*", " ".join(f"{m:.0f}±{s:.0f}" for m, s in zip(mean, spread, strict=True))


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def groups_of(review: FilmReview, clock: Clock) -> list[dict[str, Any]]:
    """The warnings by kind, the most frequent first: their places, and what helps."""
    kinds = list(dict.fromkeys(finding.kind for finding in review.findings))
    groups = []
    for kind in kinds:
        found = [each for each in review.findings if each.kind == kind]
        clips = list(dict.fromkeys(review.clips[each.clip].shot.id for each in found))
        groups.append(
            {
                "kind": kind,
                "title": found[0].title,
                "limit": found[0].limit,
                "places": [_place(each, review, clock) for each in found],
                "clips": clips,
                "force": "".join(f" --force {shlex.quote(clip)}" for clip in clips),
                "cures": list(dict.fromkeys(cure for each in found for cure in each.cures)),
            }
        )
    return sorted(groups, key=lambda group: -len(group["places"]))


def _place(finding: Finding, review: FilmReview, clock: Clock) -> dict[str, Any]:
    clip = review.clips[finding.clip]
    return {
        "id": clip.shot.id,
        "anchor": f"clip-{finding.clip + 1}",
        "time": clock(finding.frame),
        "seconds": clock.seconds(finding.frame),
        "within": finding.within,
        "frames": finding.frames,
        "value": number(finding.value),
    }


def number(value: float) -> str:
    """Three digits at most, and no needless zeros."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def seams_of(review: FilmReview, frames: int, clock: Clock) -> list[dict[str, Any]]:
    """Every join as a mark on the seam plot."""
    return [_seam(join, review, frames, clock) for join in review.joins]


def _seam(join: Join, review: FilmReview, frames: int, clock: Clock) -> dict[str, Any]:
    step = _told(join)
    flagged = any(each.frame == join.frame and each.clip == join.clip for each in _of_joins(review))
    return {
        "x": round(100 * join.frame / max(frames, 1), 3),
        "y": None if step is None else round(100 - 100 * min(step / SEAM_TOP, 1), 1),
        "kind": join.kind,
        "measured": join.seam is not None,
        "flagged": flagged,
        "seconds": clock.seconds(join.frame),
        "says": f"{clock(join.frame)}, into {review.clips[join.clip].shot.id}: {_in_words(join, step)}",
    }


def _of_joins(review: FilmReview) -> list[Finding]:
    kinds = ("jump", "duplicate", "colour-step", "other-picture")
    return [each for each in review.findings if each.kind in kinds]


def _told(join: Join) -> float | None:
    """The number that says most: nearly none where a frame is repeated, else the step; None at rest."""
    if join.seam is None or join.seam.step is None:
        return None
    step, least = join.seam.step, join.seam.least
    if least is not None and least < REPEAT.value:
        return least
    return None if step < REPEAT.value else step


def _in_words(join: Join, step: float | None) -> str:
    if join.kind != "continue":
        return f"a {join.kind}, not a join"
    if join.seam is None:
        return "not measured"
    if step is None:
        return "at rest, nothing to see"
    state = "a jump" if step > STEP.value else "a repeated frame" if step < REPEAT.value else "goes on"
    return f"{step:.2f} times the motion around, {state}"


def machines(review: FilmReview) -> list[tuple[str, str]]:
    """Versions and machines that made the clips, and which clips."""
    found: dict[str, list[str]] = {}
    for clip in review.clips:
        for entry in clip.entries:
            notes = entry.manifest.get("notes") if entry else None
            if entry is None or not isinstance(notes, dict):
                continue
            versions = notes.get("versions")
            said = {**(versions if isinstance(versions, dict) else {}), **entry.environment}
            line = _cut_short(" · ".join(f"{name} {_cut_short(str(value))}" for name, value in said.items()))
            clips = found.setdefault(line, [])
            if clip.shot.id not in clips:
                clips.append(clip.shot.id)
    everyone = len(review.clips)
    return [
        (line, "all clips" if len(clips) == everyone else ", ".join(clips)) for line, clips in found.items()
    ]


def gaps_of(review: FilmReview, frames: int) -> list[tuple[float, float]]:
    """Where passes are not made yet: percent of the film at which each starts, and how much of it it is."""
    gaps = []
    for clip in review.clips:
        place = clip.start
        for planned, entry in zip(clip.shot.segments, clip.entries, strict=True):
            if entry is None:
                gaps.append((round(100 * place / frames, 3), round(100 * planned.contributes / frames, 3)))
            place += planned.contributes
    return gaps


def _cut_short(text: str) -> str:
    """As much of what an entry says about itself as fits a line or two."""
    return text if len(text) <= MOST_SAID else f"{text[: MOST_SAID - 1]}…"


HEAD = 2**16
_HEAD = re.compile(
    rb'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    rb'<meta http-equiv="Content-Security-Policy" content="'
    rb"default-src 'none'; base-uri 'none'; form-action 'none'; [^\n]*'sha256-[^\n]*'sha256-[^\n]*\n"
    rb"(<meta [^\n]*\n)*<title>[^<]*\xe2\x80\x93 review</title>\n<style>"
)


@dataclass(frozen=True)
class Shown:
    """What of a film is on the disk."""

    film: Path | None
    """The file to play; None when there is none."""
    note: str
    """What there is to say about it; empty when it is the film as planned."""
    again: str = ""
    """The command that renders the film, with the options that were used; empty for the plain one."""


def page_of(review: FilmReview, shown: Shown, page: Path) -> str:
    """The HTML of a page that will lie at `page`; the film is named relative to it."""
    frames = film_frames(review)
    clock = Clock(review.plan.fps)
    lines = plots(review, frames)
    film = _relative(shown.film, page) if shown.film else ""
    style, script = _asset("page.css"), _asset("page.js")
    html: str = _template().render(
        review=review,
        plan=review.plan,
        shown=shown,
        film=film,
        clock=clock,
        length=clock(frames),
        frames=frames,
        clips=[clip_view(clip, review, clock) for clip in review.clips],
        groups=groups_of(review, clock),
        again=shown.again or f"svi-story render {shlex.quote(review.plan.board.name)}",
        blind=[clip.shot.id for clip in review.clips if clip.run and clip.run.anchor.empty],
        gaps=gaps_of(review, frames),
        poster=_poster(review),
        missing=[clip for clip in review.clips if clip.missing],
        plots=lines,
        seams=seams_of(review, frames, clock),
        ticks=_ticks(frames / float(review.plan.fps)),
        data=_json(_data(review, lines, frames)),
        limits=TABLE,
        machines=machines(review),
        version=__version__,
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    return html


def write_page(review: FilmReview, shown: Shown, page: Path, publish: Publish = atomic_file) -> None:
    """Put the page in place at once. RenderError when the disk refuses."""
    html = page_of(review, shown, page)
    remove_stale_temps(page.absolute().parent)
    with publish(page) as temporary, refusals(page):
        temporary.write_text(html, "utf-8", errors="replace")


def is_page(path: Path) -> bool:
    """Whether a file is a page that svi-story wrote, by how it begins."""
    try:
        with open_regular(path) as file:
            return _HEAD.match(file.read(HEAD)) is not None
    except OSError:
        return False


def film_frames(review: FilmReview) -> int:
    """Frames of the film at the board's rate, cards included."""
    cut = review.plan.cut
    last = review.clips[-1]
    return last.start + last.shot.frames + (cut.end_card.frames if cut.end_card else 0)


def _poster(review: FilmReview) -> Picture | None:
    """What the player shows before it plays: not the first frame, which may be black on purpose."""
    pictures = next((clip.pictures for clip in review.clips if clip.pictures), ())
    return pictures[len(pictures) // 2] if pictures else None


def _relative(film: Path, page: Path) -> str:
    """A URL from the page to the film, for any name; `./` keeps a colon from looking like a protocol."""
    name = os.path.relpath(film, page.parent)
    return "./" + quote(os.fsencode(name))


def _ticks(seconds: float) -> list[tuple[float, str]]:
    """Marks of the time axis: percent of the film, and what it says."""
    steps = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
    step = next((each for each in steps if seconds / each <= 8), 7200)
    count = int(seconds / step) + 1
    times = [each * step for each in range(count) if each * step < seconds * 0.97]
    return [
        (
            100 * each / seconds,
            f"{int(each) // 60}:{each % 60:04.1f}" if step < 1 else f"{int(each) // 60}:{int(each) % 60:02}",
        )
        for each in times
    ]


def _data(review: FilmReview, lines: tuple[Plot, ...], frames: int) -> dict[str, Any]:
    """What the script needs: names and places only, and the numbers to read off."""
    return {
        "seconds": frames / float(review.plan.fps),
        "fps": float(review.plan.fps),
        "clips": [
            {"id": clip.shot.id, "start": clip.start / float(review.plan.fps)} for clip in review.clips
        ],
        "plots": {
            plot.id: [{"name": line.name, "values": line.values} for line in plot.lines] for plot in lines
        },
    }


def _json(value: object) -> Markup:
    """JSON that is safe inside a script element: nothing in it can end one, or start a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - escaped above


def _asset(name: str) -> str:
    return files("svi_story.review").joinpath("page", name).read_text("utf-8")


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html"))
