"""The film's sibling .json: what made it, and how to know that it is still up to date."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from svi_story import __version__
from svi_story.cache.files import disk, sha256_file, write_atomic
from svi_story.plan.why import MadeClip, MadeFilm, MadeSegment

if TYPE_CHECKING:
    from pathlib import Path

    from svi_story.render.jobs import Job

RECORD_VERSION = 1

ODD_NAMES = "backslashreplace"
"""A file name that is no UTF-8 becomes an escape that JSON knows."""


def record_path(film: Path) -> Path:
    """Where a film's record lies: beside it."""
    return film.with_suffix(".json")


@dataclass(frozen=True)
class Record:
    """What a film was made from, as far as later runs need it."""

    recipe: str
    size: int
    """The film's bytes."""
    sha256: str
    made: MadeFilm


def read_record(film: Path) -> Record | None:
    """The record beside a film; None where there is none, or one that cannot be understood."""
    try:
        found = json.loads(record_path(film).read_text("utf-8"))
        if found["version"] != RECORD_VERSION:
            return None
        return Record(found["recipe"], found["bytes"], found["sha256"], _made(found))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _made(found: dict[str, Any]) -> MadeFilm:
    clips = tuple(_made_clip(clip) for clip in found["clips"])
    return MadeFilm(
        str(found["title"]), str(found["fps"]), int(found["crf"]), str(found["board_sha256"]), clips
    )


def _made_clip(clip: dict[str, Any]) -> MadeClip:
    segments = tuple(MadeSegment(str(part["key"]), dict(part["inputs"])) for part in clip["segments"])
    return MadeClip(str(clip["id"]), str(clip["prompt"]), int(clip["fade"]), segments)


def is_up_to_date(film: Path, recipe: str) -> bool:
    """Whether the film at that place was made by this recipe and is still the file that was made."""
    record = read_record(film)
    if record is None or record.recipe != recipe:
        return False
    try:
        return film.stat().st_size == record.size and sha256_file(film) == record.sha256
    except OSError:
        return False


def write_record(job: Job, recipe: str) -> None:
    """Describe the film that was just put in place."""
    film, plan = job.place.film, job.plan
    record = {
        "version": RECORD_VERSION,
        "film": film.name,
        "bytes": film.stat().st_size,
        "sha256": sha256_file(film),
        "recipe": recipe,
        "title": plan.title,
        "board": str(job.place.board.resolve()),
        "board_sha256": plan.digest,
        "engine": plan.engine,
        "frames": plan.frames,
        "seconds": plan.seconds,
        "fps": str(plan.cut.fps),
        "width": plan.size.width,
        "height": plan.size.height,
        "crf": plan.cut.crf,
        "clips": _clips(job),
        "versions": versions(),
    }
    with disk(record_path(film), "describing the film"):
        write_atomic(
            record_path(film),
            json.dumps(record, indent=1, ensure_ascii=False).encode("utf-8", ODD_NAMES) + b"\n",
        )


def _clips(job: Job) -> list[dict[str, Any]]:
    return [
        {
            "id": shot.id,
            "prompt": shot.prompt,
            "seed": shot.seed,
            "fade": shot.fade,
            "segments": [
                {
                    "key": task.key,
                    "frames": task.segment.frames,
                    "contributes": task.segment.contributes,
                    "seed": task.segment.seed,
                    "inputs": task.inputs,
                }
                for task in tasks
            ],
        }
        for shot, tasks in zip(job.plan.shots, job.tasks, strict=True)
    ]


def planned_film(job: Job) -> MadeFilm:
    """A plan as it would be made, to compare with a record."""
    plan = job.plan
    clips = tuple(
        MadeClip(shot.id, shot.prompt, shot.fade, tuple(MadeSegment(task.key, task.inputs) for task in tasks))
        for shot, tasks in zip(plan.shots, job.tasks, strict=True)
    )
    return MadeFilm(plan.title, str(plan.cut.fps), plan.cut.crf, plan.digest, clips)


def versions() -> dict[str, str]:
    """Versions of everything that can touch a frame."""
    packages = ("numpy", "pillow", "av", "moviepy", "imageio-ffmpeg")
    return {
        "svi-story": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
