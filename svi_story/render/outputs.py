"""What a command is about to write, checked before it starts.

Nothing that it reads is written over, and nothing that svi-story did not write. What was changed since
svi-story wrote it is kept.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.bundle.archive import first_manifest
from svi_story.bundle.format import is_bundle
from svi_story.cache.outputs import is_plain, place_of
from svi_story.cache.store import Store
from svi_story.cut.media import is_note, note_path
from svi_story.cut.otio import is_timeline
from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.files import read_regular
from svi_story.render.jobs import Rejected
from svi_story.render.ownership import (
    FOLDER,
    FOREIGN,
    LINK,
    ODD,
    OURS,
    FilmFiles,
    Standing,
    known,
    media_look,
)
from svi_story.render.record import is_finished, partial_film, record_path
from svi_story.review.contact_sheet import CLIPS_PER_SHEET, is_sheet, sheet_path
from svi_story.review.report import is_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from svi_story.cache.outputs import Outputs
    from svi_story.events import Reporter
    from svi_story.plan.model import FilmPlan
    from svi_story.render.jobs import Job, Place


@dataclass(frozen=True)
class Target:
    """A path that a command will write."""

    path: Path
    what: str
    """What it is of its board, as `the film's record`."""
    look: Callable[[Path], Standing]
    """Whose a regular file is that lies there."""
    beside: bool = False
    """Whether the command is of use without it: what was changed there is kept. Else it is refused."""


@dataclass(frozen=True)
class Claim:
    """All that a command will write for one board."""

    place: Place
    plan: FilmPlan
    targets: tuple[Target, ...]
    is_done: Callable[[], bool] = lambda: False
    """Whether nothing has to be written."""
    elsewhere: str = "choose another folder with -o"


def check(claims: Sequence[Claim], outputs: Outputs, report: Reporter) -> dict[Path, InputError]:
    """What stands in the way of boards, by board; what may be replaced or is kept is told to `outputs`."""
    read = _Read(claims)
    writers: dict[Path, list[tuple[Claim, Target]]] = {}
    for claim in claims:
        for target in claim.targets:
            writers.setdefault(place_of(target.path), []).append((claim, target))

    def problem_of(claim: Claim, target: Target) -> Problem | None:
        """What is wrong with a path, whatever lies there."""
        return read.problem(claim, target) or _clash(claim, target, writers[place_of(target.path)])

    refused = {}
    for claim in claims:
        problems = _check(claim, problem_of, outputs, report)
        if problems:
            refused[claim.place.board] = InputError(*problems)
    return refused


def _check(
    claim: Claim,
    problem_of: Callable[[Claim, Target], Problem | None],
    outputs: Outputs,
    report: Reporter,
) -> list[Problem]:
    """What stands in the way of one board."""
    kept: list[tuple[Target, Standing]] = []
    problems: list[Problem] = []
    for target in claim.targets:
        problem, standing = problem_of(claim, target), _standing(target)
        if problem:
            problems.append(problem)
        elif standing.kind == "ours":
            outputs.allow(target.path)
        elif standing.kind == "edited" and target.beside:
            kept.append((target, standing))
        else:
            what = f"{claim.place.board} would write {target.what} here, but this {standing.why}"
            problems.append(Problem(f"{what}; move it away, or {claim.elsewhere}", file=str(target.path)))
    if (problems or kept) and claim.is_done():
        return []
    for target, standing in kept:
        outputs.keep(target.path)
        report(Warned(f"{target.path}: {standing.why} and is kept; remove it to get {target.what}"))
    return problems


def check_films(
    jobs: Sequence[Job], outputs: Outputs, report: Reporter, *, forced: bool
) -> tuple[list[Job], list[Rejected]]:
    """The boards whose films may be written, and those that are refused."""
    refused = check([_film_claim(job, outputs, report, forced=forced) for job in jobs], outputs, report)
    left = [job for job in jobs if job.place.board not in refused]
    rejected = [
        Rejected(
            job.place.board,
            InputError(*(job.missing.problems if job.missing else ()), *refused[job.place.board].problems),
        )
        for job in jobs
        if job.place.board in refused
    ]
    return left, rejected


def check_sheets(
    plans: Sequence[tuple[Place, FilmPlan]], outputs: Outputs, report: Reporter
) -> tuple[list[tuple[Place, FilmPlan]], list[Rejected]]:
    """The boards whose contact sheets may be written, and those that are refused."""
    claims = [Claim(place, plan, tuple(_sheets(place, plan, outputs))) for place, plan in plans]
    refused = check(claims, outputs, report)
    left = [(place, plan) for place, plan in plans if place.board not in refused]
    return left, [Rejected(board, error) for board, error in refused.items()]


def check_page(job: Job, page: Path, outputs: Outputs, report: Reporter) -> None:
    """Raises InputError where a review may not be written."""
    target = Target(page, "its review", known(outputs, is_page))
    _raise(check([Claim(job.place, job.plan, (target,))], outputs, report))


def check_timeline(
    job: Job, timeline: Path, media: Iterable[Path], outputs: Outputs, report: Reporter
) -> None:
    """Raises InputError where a timeline, or one of the clips' files that go with it, may not be written."""
    targets = [Target(timeline, "its timeline", known(outputs, is_timeline))]
    for path in media:
        targets += [
            Target(path, "the clip's file", media_look(outputs), beside=True),
            Target(note_path(path), "the note about a clip's file", known(outputs, is_note), beside=True),
        ]
    _raise(check([_export(job, targets)], outputs, report))


def check_subtitles(job: Job, target: Path, data: bytes, outputs: Outputs, report: Reporter) -> None:
    """Raises InputError where captions may not be written."""
    film = FilmFiles(job.place, job.plan, outputs)

    def look(path: Path) -> Standing:
        is_beside = place_of(path) == place_of(film.path.with_suffix(".srt"))
        with_film = film.captions(path) if is_beside else FOREIGN
        if with_film is OURS or _holds(path, data):
            return OURS
        return with_film if with_film.kind == "edited" else known(outputs, lambda _path: False)(path)

    _raise(check([_export(job, [Target(target, "its captions", look)])], outputs, report))


def check_bundle(job: Job, target: Path, outputs: Outputs, report: Reporter) -> None:
    """Raises InputError where a bundle may not be written."""

    def is_same_board(path: Path) -> bool:
        manifest = first_manifest(path)
        return manifest is not None and manifest.board == job.plan.board.name

    found = Target(target, "its bundle", known(outputs, is_same_board))
    _raise(check([_export(job, [found])], outputs, report))


def _export(job: Job, targets: Sequence[Target]) -> Claim:
    cure = "choose another folder with -o, or another name with --as"
    return Claim(job.place, job.plan, tuple(targets), elsewhere=cure)


def _raise(refused: dict[Path, InputError]) -> None:
    for error in refused.values():
        raise error


def _film_claim(job: Job, outputs: Outputs, report: Reporter, *, forced: bool) -> Claim:
    """The film, and what is put beside it."""
    files = FilmFiles(job.place, job.plan, outputs)
    targets = [
        Target(files.path, "its film", files.film),
        Target(record_path(files.path), "the film's record", files.record, beside=True),
    ]
    if len(job.plan.shots) > 1 and not _is_folder(partial_film(files.path)):  # it is a courtesy, done without
        targets.append(Target(partial_film(files.path), "the film so far", files.partial, beside=True))
    if job.plan.cut.soft and any(shot.caption.strip() for shot in job.plan.shots):
        captions = files.path.with_suffix(".srt")
        targets.append(Target(captions, "the board's captions", files.captions, beside=True))

    def is_done() -> bool:
        return not forced and job.missing is None and is_finished(job, Store(job.place.cache, report))

    return Claim(job.place, job.plan, tuple(targets), is_done)


def _sheets(place: Place, plan: FilmPlan, outputs: Outputs) -> Iterator[Target]:
    def look(path: Path) -> Standing:
        return OURS if is_sheet(path) else known(outputs, is_sheet)(path)

    for number in range(1, -(-len(plan.shots) // CLIPS_PER_SHEET) + 1):
        yield Target(sheet_path(place.film, number), "its contact sheet", look, beside=True)


def _standing(target: Target) -> Standing:
    path = target.path
    if not os.path.lexists(path):
        return OURS
    if path.is_symlink():
        return LINK
    if _is_folder(path):
        return FOLDER
    return target.look(path) if is_plain(path) else ODD


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _clash(claim: Claim, target: Target, writers: Sequence[tuple[Claim, Target]]) -> Problem | None:
    """Two boards that would write one file."""
    for other, theirs in writers:
        if other is not claim:
            what = (
                f"{claim.place.board} would write {target.what} here, and {other.place.board} {theirs.what}"
            )
            cure = "rename one, or run them apart with another -o"
            return Problem(f"{what}; {cure}", file=str(target.path))
    return None


class _Read:
    """Boards and every file that they name, by identity: links and spellings do not matter."""

    def __init__(self, claims: Iterable[Claim]) -> None:
        self._known: dict[tuple[int, int], tuple[Path, str, Path]] = {}
        for claim in claims:
            for path, role in _files_of(claim.place, claim.plan):
                identity = _identity(path)
                if identity:
                    self._known.setdefault(identity, (claim.place.board, role, path))

    def problem(self, claim: Claim, target: Target) -> Problem | None:
        """What is wrong with writing a file that is read."""
        identity = _identity(target.path)
        if identity is None or identity not in self._known:
            return None
        board, role, path = self._known[identity]
        what = f"{claim.place.board} would write {target.what} over it, and {board} reads it as its {role}"
        return Problem(f"{what} ({path}); {claim.elsewhere}", file=str(target.path))


def _files_of(place: Place, plan: FilmPlan) -> Iterator[tuple[Path, str]]:
    """Every file that a board is or names, each once, and as what."""
    files: dict[Path, str] = {place.board: "bundle" if is_bundle(place.board) else "board"}
    for shot in plan.shots:
        for segment in shot.segments:
            files.setdefault(segment.anchor.path, "reference")
            weights = [lora.path for lora in segment.loras]
            distill = segment.sampler.distill
            weights += distill.files if distill and distill.files else ()
            for path in weights:
                files.setdefault(path, "LoRA")
        for role, sounds in (("voice", shot.voices), ("sound", shot.sounds)):
            for sound in sounds:
                files.setdefault(sound.recording.path, role)
    if plan.cut.music:
        files.setdefault(plan.cut.music.sound.recording.path, "music")
    return iter(files.items())


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file holds these bytes already."""
    try:
        return read_regular(path, len(data)) == data
    except OSError:
        return False
