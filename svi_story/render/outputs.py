"""Checks the paths that a command will write, before it starts.

It overwrites nothing that it reads, and nothing that svi-story did not write. A file was written by svi-story
if the cache's ledger lists its content. Files that are older than the ledger are recognised by their own
content: a film by its XMP or its record. Files that were edited since svi-story wrote them are kept.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from svi_story.bundle.archive import first_manifest
from svi_story.bundle.format import is_bundle
from svi_story.cache.outputs import is_plain, place_of
from svi_story.cut.extras import is_own_packet
from svi_story.cut.mp4 import read_xmp
from svi_story.enginespec.sampling import Sampler
from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.files import is_writable, sha256_file
from svi_story.render.jobs import Rejected
from svi_story.render.record import (
    LARGEST_CAPTIONS,
    RECORD_VERSION,
    is_finished,
    partial_film,
    read_record,
    record_path,
)
from svi_story.review.contact_sheet import CLIPS_PER_SHEET, is_sheet, sheet_path
from svi_story.review.report import is_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from svi_story.cache.outputs import Outputs
    from svi_story.events import Reporter
    from svi_story.plan.model import FilmPlan
    from svi_story.render.jobs import Job, Place
    from svi_story.render.record import Record


class Ownership(NamedTuple):
    """Who wrote a file."""

    kind: Literal["ours", "edited", "foreign"]
    why: str = ""
    """Why it is not ours, as `was changed since svi-story wrote it`."""


OURS = Ownership("ours")
EDITED = Ownership("edited", "was changed since svi-story wrote it")
FOREIGN = Ownership("foreign", "was not written by svi-story")
LINK = Ownership("foreign", "is a symbolic link")
FOLDER = Ownership("foreign", "is a folder")
NOT_REGULAR = Ownership("foreign", "is not a regular file")
CANNOT_BE_WRITTEN = (
    "this folder cannot be written; choose other folders with -o DIR (films) and --cache DIR (segments)"
)


class FilmFiles:
    """Who wrote a film and the files that belong to it."""

    def __init__(self, place: Place, plan: FilmPlan, outputs: Outputs) -> None:
        self.path = place.film
        self._place, self._plan, self._outputs = place, plan, outputs

    def film(self, path: Path) -> Ownership:
        """A film, at this or another path."""
        outputs, record = self._outputs, _record_of(path)
        other = self._other_board(record, path)
        if other:
            return Ownership("foreign", f"is the film of {other}")
        if outputs.is_ours(path):
            return OURS
        if not outputs.is_listed(path) and is_own_packet(read_xmp(path)):
            return OURS
        if record is None:
            return EDITED if outputs.is_listed(path) else FOREIGN
        return OURS if _sha256(path, record.bytes) == record.sha256 else EDITED

    def record(self, path: Path) -> Ownership:
        """The record beside the film."""
        outputs, record = self._outputs, _record_of(self.path)
        other = self._other_board(record, self.path)
        if other:
            return Ownership("foreign", f"is the record of a film of {other}")
        if outputs.is_ours(path):
            return OURS
        if record and record.version < RECORD_VERSION:
            return OURS  # of an older svi-story
        if record:
            # a svi-story with another cache writes both, and an editor only one of them
            return EDITED if outputs.is_listed(path) and outputs.is_ours(self.path) else OURS
        return self._other_file(path)

    def captions(self, path: Path) -> Ownership:
        """The captions beside the film."""
        record = _record_of(self.path)
        noted = record.captions_sha256 if record else ()
        if self._outputs.is_ours(path) or _sha256(path, LARGEST_CAPTIONS) in noted:
            return OURS
        return Ownership("edited", "was changed by hand") if noted else self._other_file(path)

    def partial(self, path: Path) -> Ownership:
        """The partial film; a film of another board may have this name."""
        other = self._other_board(_record_of(path), path)
        if other:
            return Ownership("foreign", f"is the film of {other}")
        if self._outputs.is_ours(path) or is_own_packet(read_xmp(path)):
            return OURS
        return self._other_file(path)

    def _other_file(self, path: Path) -> Ownership:
        """A file beside our film that we did not write: it is kept."""
        if self._outputs.is_listed(path):
            return EDITED
        if is_plain(self.path) and self.film(self.path) is OURS:
            return Ownership("edited", FOREIGN.why)
        return FOREIGN

    def _other_board(self, record: Record | None, film: Path) -> str:
        """The other board to which a film belongs by its record, if that board still exists."""
        if record is None or not record.board:
            return ""
        board, ours = Path(record.board), self._place.board
        try:
            if not board.exists() or board.samefile(ours):
                return ""
        except (OSError, ValueError):
            return ""
        if (is_bundle(ours) or is_bundle(board)) and record.made.digest == self._plan.digest:
            return ""  # a board and its bundle are one
        return "" if _is_copied(board, ours, film) else record.board


def _is_copied(board: Path, ours: Path, film: Path) -> bool:
    """Whether our project is a copy of that board's: then the copied film is at the same place in both."""
    ours, film = ours.resolve(), place_of(film)
    if ours.anchor != film.anchor:  # drives of Windows
        return False
    root = Path(os.path.commonpath((ours.parent, film.parent)))
    names = ours.relative_to(root).parts
    if root == Path(root.anchor) or board.parts[-len(names) :] != names:
        return False
    return os.path.lexists(Path(*board.parts[: -len(names)], film.relative_to(root)))


def _record_of(film: Path) -> Record | None:
    record = read_record(film)
    return record if record and record.film in ("", film.name) else None


def by_ledger(outputs: Outputs, is_own: Callable[[Path], bool]) -> Callable[[Path], Ownership]:
    """The owner of a file by the ledger; if that does not list it, by its content."""

    def ownership(path: Path) -> Ownership:
        if outputs.is_ours(path):
            return OURS
        if outputs.is_listed(path):
            return EDITED
        return OURS if is_own(path) else FOREIGN

    return ownership


def _sha256(path: Path, most: int) -> str:
    """A file's sha256; empty where it cannot be read or has more bytes."""
    try:
        return sha256_file(path, most)
    except OSError:
        return ""


@dataclass(frozen=True)
class Target:
    """A path that a command will write."""

    path: Path
    what: str
    """What will be written, as `the film's record`."""
    ownership: Callable[[Path], Ownership]
    """Who wrote a regular file at this path."""
    is_optional: bool = False
    """Whether the command makes sense without it: then an edited file is kept. Otherwise it is refused."""


@dataclass(frozen=True)
class PlannedWrites:
    """Everything that a command will write for one board."""

    place: Place
    plan: FilmPlan
    targets: tuple[Target, ...]
    outputs: Outputs
    """Learns what may be replaced and what is kept."""
    is_done: Callable[[], bool] = lambda: False
    """Whether there is nothing to write."""
    remedy: str = "choose another folder with -o"


def check(planned: Sequence[PlannedWrites], report: Reporter) -> dict[Path, InputError]:
    """What prevents writing, by board."""
    inputs: dict[
        tuple[int, int], tuple[Path, str, Path]
    ] = {}  # by identity: links and spellings do not matter
    writers: defaultdict[Path, list[tuple[PlannedWrites, Target]]] = defaultdict(list)
    for writes in planned:
        for path, role in _files_of(writes.place, writes.plan):
            if identity := _identity(path):
                inputs.setdefault(identity, (writes.place.board, role, path))
        for target in writes.targets:
            writers[place_of(target.path)].append((writes, target))

    def conflict(writes: PlannedWrites, target: Target) -> Problem | None:
        """A file that some board reads, or that another board would write too."""
        would = f"{writes.place.board} would write {target.what}"
        identity = _identity(target.path)
        if identity in inputs:
            board, role, path = inputs[identity]
            what = f"{would} over it, and {board} reads it as its {role} ({path}); {writes.remedy}"
            return Problem(what, file=str(target.path))
        for other, theirs in writers[place_of(target.path)]:
            if other is not writes:
                what = f"{would} here, and {other.place.board} {theirs.what}"
                remedy = "rename one, or run them separately with another -o"
                return Problem(f"{what}; {remedy}", file=str(target.path))
        return None

    found = ((writes.place.board, _check(writes, conflict, report)) for writes in planned)
    return {board: InputError(*problems) for board, problems in found if problems}


def _check(
    writes: PlannedWrites,
    conflict: Callable[[PlannedWrites, Target], Problem | None],
    report: Reporter,
) -> list[Problem]:
    """What prevents writing for one board."""
    kept: list[tuple[Target, Ownership]] = []
    problems: list[Problem] = []
    for target in writes.targets:
        problem, owner = conflict(writes, target), _ownership(target)
        if problem:
            problems.append(problem)
        elif owner.kind == "ours" and not is_writable(target.path.parent):
            what = f"{writes.place.board} would write {target.what} here, but {CANNOT_BE_WRITTEN}"
            problems.append(Problem(what, file=str(target.path)))
        elif owner.kind == "ours":
            writes.outputs.allow(target.path)
        elif owner.kind == "edited" and target.is_optional:
            kept.append((target, owner))
        else:
            what = f"{writes.place.board} would write {target.what} here, but this {owner.why}"
            problems.append(Problem(f"{what}; move it away, or {writes.remedy}", file=str(target.path)))
    if (problems or kept) and writes.is_done():
        return []
    for target, owner in kept:
        writes.outputs.keep(target.path)
        report(Warned(f"{target.path}: {owner.why} and is kept; remove it to get {target.what}"))
    return problems


def check_films(
    jobs: Sequence[Job],
    films: Mapping[Path, Sequence[Job]],
    outputs_of: Callable[[Path], Outputs],
    report: Reporter,
    *,
    forced: bool,
) -> tuple[list[Job], list[Rejected]]:
    """The boards whose films may be written, and those that are refused.

    `films` are the films to make of each board; `outputs_of` returns the object to write with, for the cache
    of a project.
    """
    planned = []
    for job in jobs:
        outputs = outputs_of(job.place.settings.cache)
        planned.append(_film_writes(job, films.get(job.place.board, ()), outputs, report, forced=forced))
    refused = check(planned, report)
    for job in jobs:
        store = job.place.store(report)
        missing = (
            segment for segment in job.every_segment if segment.key and store.state(segment.key) != "cached"
        )
        if not is_writable(job.place.cache) and any(missing):
            board = job.place.board
            what = f"{board} would keep its segments here, but {CANNOT_BE_WRITTEN}"
            problems = refused[board].problems if board in refused else ()
            refused[board] = InputError(*problems, Problem(what, file=str(job.place.cache)))
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
    plans: Sequence[tuple[Place, FilmPlan]], outputs_of: Callable[[Path], Outputs], report: Reporter
) -> tuple[list[tuple[Place, FilmPlan]], list[Rejected]]:
    """The boards whose contact sheets may be written, and those that are refused."""
    planned = []
    for place, plan in plans:
        outputs = outputs_of(place.settings.cache)
        planned.append(PlannedWrites(place, plan, tuple(_sheets(place, plan, outputs)), outputs))
    refused = check(planned, report)
    left = [(place, plan) for place, plan in plans if place.board not in refused]
    return left, [Rejected(board, error) for board, error in refused.items()]


def check_page(job: Job, page: Path, outputs: Outputs, report: Reporter) -> None:
    """Raises InputError where a review may not be written."""
    target = Target(page, "its review", by_ledger(outputs, is_page))
    raise_first(check([PlannedWrites(job.place, job.plan, (target,), outputs)], report))


def check_video_page(film: Path, page: Path, outputs: Outputs) -> None:
    """Raises InputError where the review of a film file may not be written."""
    owner = _ownership(Target(page, "its review", by_ledger(outputs, is_page)))
    if owner is not OURS:
        what = f"the review of {film} would be written here, but this {owner.why}"
        raise InputError(Problem(f"{what}; move it away, or choose another folder with -o", file=str(page)))
    outputs.allow(page)


def check_bundle(job: Job, target: Path, outputs: Outputs, report: Reporter) -> None:
    """Raises InputError where a bundle may not be written."""

    def is_same_board(path: Path) -> bool:
        manifest = first_manifest(path)
        return manifest is not None and manifest.board == job.plan.board.name

    found = Target(target, "its bundle", by_ledger(outputs, is_same_board))
    raise_first(check([export_writes(job, [found], outputs)], report))


def export_writes(job: Job, targets: Sequence[Target], outputs: Outputs) -> PlannedWrites:
    """The writes of an export, whose targets the user can name."""
    remedy = "choose another folder with -o, or another name with --as"
    return PlannedWrites(job.place, job.plan, tuple(targets), outputs, remedy=remedy)


def raise_first(refused: dict[Path, InputError]) -> None:
    """Raise the error of the only board that was checked, if it was refused."""
    for error in refused.values():
        raise error


def _film_writes(
    job: Job, films: Sequence[Job], outputs: Outputs, report: Reporter, *, forced: bool
) -> PlannedWrites:
    """The films of a board, their records, partial films and captions."""
    targets = []
    for film in films:
        files = FilmFiles(film.place, film.plan, outputs)
        targets.append(Target(files.path, "its film", files.film))
        targets.append(Target(record_path(files.path), "the film's record", files.record, is_optional=True))
        if len(film.plan.shots) > 1 and not _is_folder(partial_film(files.path)):  # the film does not need it
            targets.append(
                Target(partial_film(files.path), "the film so far", files.partial, is_optional=True)
            )
        if film.plan.cut.soft and any(shot.caption.strip() for shot in film.plan.shots):
            captions = files.path.with_suffix(".srt")
            targets.append(Target(captions, "the board's captions", files.captions, is_optional=True))

    def is_done() -> bool:
        store = job.place.store(report)
        return not forced and job.missing is None and all(is_finished(film, store) for film in films)

    return PlannedWrites(job.place, job.plan, tuple(targets), outputs, is_done)


def _sheets(place: Place, plan: FilmPlan, outputs: Outputs) -> Iterator[Target]:
    def ownership(path: Path) -> Ownership:
        return OURS if is_sheet(path) else by_ledger(outputs, is_sheet)(path)

    for number in range(1, -(-len(plan.shots) // CLIPS_PER_SHEET) + 1):
        yield Target(sheet_path(place.film, number), "its contact sheet", ownership, is_optional=True)


def _ownership(target: Target) -> Ownership:
    path = target.path
    if not os.path.lexists(path):
        return OURS
    if path.is_symlink():
        return LINK
    if _is_folder(path):
        return FOLDER
    return target.ownership(path) if is_plain(path) else NOT_REGULAR


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _files_of(place: Place, plan: FilmPlan) -> Iterator[tuple[Path, str]]:
    """The board and every file that it names, each once, with its role."""
    files: dict[Path, str] = {place.board: "bundle" if is_bundle(place.board) else "board"}
    for shot in plan.shots:
        for segment in shot.segments:
            files.setdefault(segment.anchor.path, "reference")
            weights = [lora.path for lora in segment.loras]
            distill = segment.options.distill if isinstance(segment.options, Sampler) else None
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
