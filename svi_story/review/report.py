"""The review as one HTML page that needs nothing besides itself and the film."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from svi_story import __version__
from svi_story.files import atomic_file, disk, open_regular, remove_stale_temps
from svi_story.review.limits import TABLE
from svi_story.review.plots import plots
from svi_story.review.view import Clock, clip_view, gaps_of, groups_of, machines, seams_of

if TYPE_CHECKING:
    from pathlib import Path

    from svi_story.cache.outputs import Publish
    from svi_story.review.pictures import Picture
    from svi_story.review.plots import Plot
    from svi_story.review.quality import FilmReview


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
    with publish(page) as temporary, disk(page):
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
