"""The review as one HTML page that needs nothing besides itself and the film."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections import Counter
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
from svi_story.commands import suggest
from svi_story.enginespec import spec_of
from svi_story.files import atomic_file, disk, open_regular, relative_path, remove_stale_temps
from svi_story.portable import command_line
from svi_story.review.graphics import plots, unjudged
from svi_story.review.thresholds import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from svi_story.cache.outputs import Publish
    from svi_story.review.analysis import Seam
    from svi_story.review.graphics import Plot
    from svi_story.review.results import ClipReview, FilmReview, TakeReview


SEAM_TOP = 3.0
"""The seam plot's upper edge, in multiples of the motion around."""
MAX_VERSIONS = 400
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
    shot, spent, pictures = clip.shot, clip.seconds_spent, len(clip.pictures)
    facts: list[tuple[str, str, str]] = []
    if shot is not None:
        first = shot.segments[0]
        settings = spec_of(first.engine).describe(first.options) or {"engine": first.engine}
        asked = f"requested {shot.asked_frames}" if shot.asked_frames != shot.frames else ""
        facts += [
            ("seed", ", ".join(dict.fromkeys(str(segment.seed) for segment in shot.segments)), ""),
            *((name, value, "") for name, value in settings.items()),
            *(("LoRA", f"{lora.path.name} {lora.high:g} / {lora.low:g}", "") for lora in first.loras),
            ("frames", str(shot.frames), asked),
            ("segments", " + ".join(str(segment.frames) for segment in shot.segments), ""),
        ]
    if spent:
        on = f"{_duration(spent[0])} sampling, {_duration(spent[1])} decoding"
        facts.append(("time spent", _duration(sum(spent)), on))
    return {
        "review": clip,
        "anchor": f"clip-{clip.number + 1}",
        "follows": _transition(clip),
        "facts": facts,
        "numbers": list(_numbers(clip)),
        "findings": [each for each in review.findings if each.clip == clip.number],
        "takes": [take_view(take, review) for take in clip.takes],
        "labels": ("first", "middle", "last") if pictures == 3 else ("first", "last")[:pictures],
        "start": clock(clip.start),
        "stop": clock(clip.start + clip.frames),
    }


def take_view(take: TakeReview, review: FilmReview) -> dict[str, Any]:
    """What a take's picture on its clip's card says."""
    clip, board = take.clip, review.plan.board if review.plan else None
    titles = Counter(finding.threshold.title for finding in take.findings)
    return {
        "number": take.number,
        "picked": take.picked,
        "seed": clip.shot.seed if clip.shot else "",
        "still": clip.pictures[len(clip.pictures) // 2] if clip.pictures else None,
        "loop": take.loop,
        "missing": clip.missing,
        "segments": len(clip.entries),
        "numbers": list(_numbers(clip)),
        "flags": [title + (f" × {count}" if count > 1 else "") for title, count in titles.items()],
        "command": "" if take.picked else suggest("pick", clip.id, str(take.number), path=board),
    }


def _transition(clip: ClipReview) -> str:
    """How a clip follows the one before."""
    if clip.number == 0:
        return "starts the film"
    if clip.shot and clip.shot.fade:
        return f"fades in over {clip.shot.fade} frames"
    if clip.shot and clip.shot.dip:
        return f"through black, {clip.shot.dip} frames"
    return "cut" if clip.starts_chain else "continues"


def _numbers(clip: ClipReview) -> Iterator[tuple[str, str]]:
    """A clip's measures, in short."""
    if clip.run is None:
        return
    drift, series = clip.run.drift.total[clip.in_run], clip.run.series[clip.in_run]
    yield "from the anchor", f"{np.median(drift):.1f} ΔE, at most {drift.max():.1f}"
    yield "sharpness", f"{np.median(series.sharpness):.2f}"
    yield "motion", f"{np.median(series.mean_motion) * float(clip.run.fps) / 10:.1f} %/s"
    spread, mean = series.spread.mean(axis=0), series.mean.mean(axis=0)
    yield "L* a* b*", " ".join(f"{m:.0f}±{s:.0f}" for m, s in zip(mean, spread, strict=True))


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole, minutes = round(seconds), round(seconds / 60)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def warning_groups(review: FilmReview, clock: Clock) -> list[dict[str, Any]]:
    """The warnings by kind, the most frequent first: their places, and what to try."""
    groups = []
    for kind in dict.fromkeys((finding.kind, finding.what) for finding in review.findings):
        found = [each for each in review.findings if (each.kind, each.what) == kind]
        clips = list(dict.fromkeys(review.clips[each.clip].id for each in found))
        places = [
            {
                "id": review.clips[each.clip].id,
                "anchor": f"clip-{each.clip + 1}",
                "time": clock(each.frame),
                "seconds": clock.seconds(each.frame),
                "frames": each.frames,
                "value": f"{each.value:.0f}" if each.value >= 100 else f"{each.value:.3g}",
            }
            for each in found
        ]
        groups.append(
            {
                "threshold": found[0].threshold,
                "degrades": found[0].what is not None,
                "places": places,
                "clips": clips,
                "force": " ".join(["", command_line([word for clip in clips for word in ("--force", clip)])]),
                "remedies": list(dict.fromkeys(remedy for each in found for remedy in each.remedies)),
            }
        )
    return sorted(groups, key=lambda group: (not group["degrades"], -len(group["places"])))


def degradation_view(review: FilmReview, clock: Clock) -> dict[str, Any]:
    """The answer in words; of runs that degrade, a frame of the beginning and one of the worst window."""
    judged = f"{100 * review.judged_share:.0f} % of the film could be judged"
    if review.verdict == "degraded":
        runs = [run for run in review.runs if run.degradation.found]
        since = min(each.since for run in runs for each in run.degradation.found)
        text = f"Degrades from {clock(floor(since * review.fps))} on; {judged}."
    elif review.verdict == "not degraded":
        text = f"Does not degrade, as far as can be told: {judged} by what stayed in the picture."
    elif any(run.degradation.late_windows for run in review.runs):
        text = f"Cannot tell whether it degrades: too little stays in the picture ({judged})."
    else:
        text = "Cannot tell whether it degrades: nothing is longer than 10 seconds without a cut."
    pairs = []
    for run in review.runs:
        if run.first and run.worst:
            pictures = [
                {
                    "picture": picture,
                    "name": name,
                    "time": clock(picture.within),
                    "seconds": clock.seconds(picture.within),
                }
                for name, picture in (("first", run.first), ("worst", run.worst))
            ]
            pairs.append({"clip": review.clips[run.clips[0]].id, "pictures": pictures})
    return {"text": text, "pairs": pairs}


def facts_of(review: FilmReview) -> list[str]:
    """What is known about a film file, in sentences."""
    if review.facts is None:
        return []
    facts, texts = review.facts, []
    if facts.damage:
        texts.append(f"The file is cut off or damaged: {facts.damage}. What can be read is reviewed.")
    if facts.retiming:
        source, count = float(review.fps * facts.retiming.ratio), int(facts.retiming.repeats.sum())
        texts.append(
            f"Converted from {source:.4g} to {float(review.fps):.4g} fps by repeating frames: "
            f"{count} repeated frames are left out of all measures."
        )
    if facts.is_variable:
        texts.append("The time between frames varies: repeated frames, flashes and joins are not judged.")
    return texts


def seam_marks(review: FilmReview, frames: int, clock: Clock) -> list[dict[str, Any]]:
    """Every join as a mark on the seam plot."""
    of_joins = ("jump", "duplicate", "colour-step", "other-picture")
    flagged = {(each.clip, each.frame) for each in review.findings if each.kind in of_joins}
    marks = []
    for join in review.joins:
        ratio, text = _seam_ratio(join.seam), "not measured"
        if join.kind != "continue":
            text = f"a {join.kind}, not a join"
        elif join.seam is not None:
            text = "at rest, not visible" if ratio is None else _ratio_text(ratio)
        marks.append(
            {
                "x": round(100 * join.frame / max(frames, 1), 3),
                "y": None if ratio is None else round(100 - 100 * min(ratio / SEAM_TOP, 1), 1),
                "kind": join.kind,
                "measured": join.seam is not None,
                "flagged": (join.clip, join.frame) in flagged,
                "seconds": clock.seconds(join.frame),
                "text": f"{clock(join.frame)}, into {review.clips[join.clip].id}: {text}",
            }
        )
    return marks


def _seam_ratio(seam: Seam | None) -> float | None:
    """The step over a join against the motion around; near 0 for a repeated frame, None at rest."""
    repeated = TABLE["duplicate"].value
    if seam is None or seam.step is None:
        return None
    if seam.least is not None and seam.least < repeated:
        return seam.least
    return None if seam.step < repeated else seam.step


def _ratio_text(ratio: float) -> str:
    what = "continuous"
    if ratio > TABLE["jump"].value:
        what = "a jump"
    elif ratio < TABLE["duplicate"].value:
        what = "a repeated frame"
    return f"{ratio:.2f} times the motion around, {what}"


def versions_of(review: FilmReview) -> list[tuple[str, str]]:
    """Versions and machines that rendered the clips, and which clips."""
    found: dict[str, list[str]] = {}
    for clip in review.clips:
        for entry in clip.entries:
            notes = entry.manifest.get("notes") if entry else None
            if entry is None or not isinstance(notes, dict):
                continue
            versions = notes.get("versions")
            facts = {**(versions if isinstance(versions, dict) else {}), **entry.environment}
            line = _cut_short(" · ".join(f"{name} {_cut_short(str(value))}" for name, value in facts.items()))
            clips = found.setdefault(line, [])
            if clip.id not in clips:
                clips.append(clip.id)
    return [
        (line, "all clips" if len(clips) == len(review.clips) else ", ".join(clips))
        for line, clips in found.items()
    ]


def _cut_short(text: str) -> str:
    """As much of a text from an entry, which anybody may have written, as fits a line or two."""
    return text if len(text) <= MAX_VERSIONS else f"{text[: MAX_VERSIONS - 1]}…"


def gaps_of(review: FilmReview, frames: int) -> list[tuple[float, float]]:
    """Segments that are not rendered yet: start and length, in percent of the film."""
    gaps = []
    for clip in review.clips:
        place = clip.start
        for planned, entry in zip(clip.shot.segments if clip.shot else (), clip.entries, strict=True):
            if entry is None:
                gaps.append((round(100 * place / frames, 3), round(100 * planned.contributes / frames, 3)))
            place += planned.contributes
    return gaps


HEAD_BYTES = 2**16
_HEAD = re.compile(
    rb'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    rb'<meta http-equiv="Content-Security-Policy" content="'
    rb"default-src 'none'; base-uri 'none'; form-action 'none'; [^\n]*'sha256-[^\n]*'sha256-[^\n]*\n"
    rb"(<meta [^\n]*\n)*<title>[^<]*\xe2\x80\x93 review</title>\n<style>"
)


@dataclass(frozen=True)
class Playback:
    """The film that the page plays."""

    film: Path | None
    """The file; None where there is none yet."""
    note: str
    """Why it is not the film as planned; empty where it is."""
    command: str = ""
    """Renders the film with the options that were used; empty for the plain command."""


def page_of(review: FilmReview, playback: Playback, page: Path) -> str:
    """The HTML of a page at `page`; its link to the film is relative."""
    frames, plan = review.frames, review.plan
    clock = Clock(review.fps)
    length, rate = (plan.frames, plan.cut.fps) if plan else (frames, review.fps)
    lines = plots(review)
    pictures = next((clip.pictures for clip in review.clips if clip.pictures), ())
    style, script = _asset("page.css"), _asset("page.js")
    html: str = _template().render(
        review=review,
        playback=playback,
        film=_relative_url(playback.film, page) if playback.film else "",
        clock=clock,
        length=Clock(rate)(length),
        frames=length,
        rate=rate,
        clips=[clip_view(clip, review, clock) for clip in review.clips],
        cards=plan is not None or len(review.clips) > 1,
        degradation=degradation_view(review, clock),
        unjudged=unjudged(review),
        facts=facts_of(review),
        groups=warning_groups(review, clock),
        command=(playback.command or suggest("render", path=plan.board.name)) if plan else "",
        uniform=review.uniform_anchors,
        gaps=gaps_of(review, frames),
        # Not the first frame, which may be black on purpose
        poster=pictures[len(pictures) // 2] if pictures else None,
        missing=[clip for clip in review.clips if clip.missing],
        plots=lines,
        seams=seam_marks(review, frames, clock),
        ticks=_ticks(frames / float(review.fps)),
        data=_json(_data(review, lines, frames)),
        thresholds=TABLE,
        versions=versions_of(review),
        version=__version__,
        style=Markup(style),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    return html


def write_page(review: FilmReview, playback: Playback, page: Path, publish: Publish = atomic_file) -> None:
    """Write the page in one step. RenderError when writing fails."""
    html = page_of(review, playback, page)
    remove_stale_temps(page.absolute().parent)
    with publish(page) as temporary, disk(page):
        temporary.write_text(html, "utf-8", errors="replace")


def is_page(path: Path) -> bool:
    """Whether a file is a page that svi-story wrote, judged by its start."""
    try:
        with open_regular(path) as file:
            return _HEAD.match(file.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def _relative_url(film: Path, page: Path) -> str:
    """A URL from the page to the film, for any name; `./` keeps a colon from looking like a protocol."""
    name = relative_path(film, page.parent)
    return "./" + quote(os.fsencode(name))


def _ticks(seconds: float) -> list[tuple[float, str]]:
    """Marks of the time axis: percent of the film, and label."""
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
    """The data of the page's script: names and times of clips, and the values of the plots."""
    return {
        "seconds": frames / float(review.fps),
        "fps": float(review.fps),
        "clips": [{"id": clip.id, "start": clip.start / float(review.fps)} for clip in review.clips],
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
