"""What a command is about to write, checked before it starts.

Nothing that it reads is overwritten, and nothing that svi-story did not write. A file is svi-story's when the
cache's ledger lists its content, or when it says so itself: a film by its XMP or its record, others by their
form. Those may be older than the ledger. Files that were edited since svi-story wrote them are kept.
"""

from __future__ import annotations

import os
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
from svi_story.files import sha256_file
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
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from svi_story.cache.outputs import Outputs
    from svi_story.events import Reporter
    from svi_story.plan.model import FilmPlan
    from svi_story.render.jobs import Job, Place
    from svi_story.render.record import Record


class Ownership(NamedTuple):
    """Whose file it is."""

    kind: Literal["ours", "edited", "foreign"]
    why: str = ""
    """How it is not ours, as `was changed since`."""


OURS = Ownership("ours")
EDITED = Ownership("edited", "was changed since svi-story wrote it")
FOREIGN = Ownership("foreign", "was not written by svi-story")
LINK = Ownership("foreign", "is a symbolic link")
FOLDER = Ownership("foreign", "is a folder")
ODD = Ownership("foreign", "is not a regular file")
CANNOT_BE_WRITTEN = (
    "this folder cannot be written; choose other folders with -o DIR (films) and --cache DIR (segments)"
)


class FilmFiles:
    """Who owns the files of a film and beside it."""

    def __init__(self, place: Place, plan: FilmPlan, outputs: Outputs) -> None:
        self.path = place.film
        self._place, self._plan, self._outputs = place, plan, outputs

    def film(self, path: Path) -> Ownership:
        """A film here, or elsewhere."""
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
        return self._unknown(path)

    def captions(self, path: Path) -> Ownership:
        """The captions beside the film."""
        record = _record_of(self.path)
        noted = record.captions_sha256 if record else ()
        if self._outputs.is_ours(path) or _sha256(path, LARGEST_CAPTIONS) in noted:
            return OURS
        return Ownership("edited", "was changed by hand") if noted else self._unknown(path)

    def partial(self, path: Path) -> Ownership:
        """What exists so far of the film; a film of another board may have this name."""
        other = self._other_board(_record_of(path), path)
        if other:
            return Ownership("foreign", f"is the film of {other}")
        if self._outputs.is_ours(path) or is_own_packet(read_xmp(path)):
            return OURS
        return self._unknown(path)

    def _unknown(self, path: Path) -> Ownership:
        """What can lie beside our film, and is nothing that we wrote: it is kept there."""
        if self._outputs.is_listed(path):
            return EDITED
        if is_plain(self.path) and self.film(self.path) is OURS:
            return Ownership("edited", FOREIGN.why)
        return FOREIGN

    def _other_board(self, record: Record | None, film: Path) -> str:
        """The other board whose film it is by its record, if that board still exists."""
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
    """Whether our project is a copy of that board's, with its films: there, a film lies in the same place."""
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


def known(outputs: Outputs, is_own: Callable[[Path], bool]) -> Callable[[Path], Ownership]:
    """Looks at the ledger, and where it knows nothing, at the file."""

    def look(path: Path) -> Ownership:
        if outputs.is_ours(path):
            return OURS
        if outputs.is_listed(path):
            return EDITED
        return OURS if is_own(path) else FOREIGN

    return look


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
    """What it is of its board, as `the film's record`."""
    look: Callable[[Path], Ownership]
    """Whose a regular file is that lies there."""
    beside: bool = False
    """Whether the command is of use without it: what was changed there is kept. Else it is refused."""


@dataclass(frozen=True)
class PlannedWrites:
    """All that a command will write for one board."""

    place: Place
    plan: FilmPlan
    targets: tuple[Target, ...]
    outputs: Outputs
    """Learns what may be replaced and what is kept."""
    is_done: Callable[[], bool] = lambda: False
    """Whether nothing has to be written."""
    elsewhere: str = "choose another folder with -o"


def check(claims: Sequence[PlannedWrites], report: Reporter) -> dict[Path, InputError]:
    """What prevents writing, by board."""
    read = _InputFiles(claims)
    writers: dict[Path, list[tuple[PlannedWrites, Target]]] = {}
    for claim in claims:
        for target in claim.targets:
            writers.setdefault(place_of(target.path), []).append((claim, target))

    def problem_of(claim: PlannedWrites, target: Target) -> Problem | None:
        """What is wrong with a path, whatever lies there."""
        return read.problem(claim, target) or _clash(claim, target, writers[place_of(target.path)])

    refused = {}
    for claim in claims:
        problems = _check(claim, problem_of, report)
        if problems:
            refused[claim.place.board] = InputError(*problems)
    return refused


def _check(
    claim: PlannedWrites,
    problem_of: Callable[[PlannedWrites, Target], Problem | None],
    report: Reporter,
) -> list[Problem]:
    """What prevents writing for one board."""
    kept: list[tuple[Target, Ownership]] = []
    problems: list[Problem] = []
    for target in claim.targets:
        problem, owner = problem_of(claim, target), _ownership(target)
        if problem:
            problems.append(problem)
        elif owner.kind == "ours" and not is_writable(target.path.parent):
            what = f"{claim.place.board} would write {target.what} here, but {CANNOT_BE_WRITTEN}"
            problems.append(Problem(what, file=str(target.path)))
        elif owner.kind == "ours":
            claim.outputs.allow(target.path)
        elif owner.kind == "edited" and target.beside:
            kept.append((target, owner))
        else:
            what = f"{claim.place.board} would write {target.what} here, but this {owner.why}"
            problems.append(Problem(f"{what}; move it away, or {claim.elsewhere}", file=str(target.path)))
    if (problems or kept) and claim.is_done():
        return []
    for target, owner in kept:
        claim.outputs.keep(target.path)
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
    claims = []
    for job in jobs:
        outputs = outputs_of(job.place.settings.cache)
        claims.append(_film_writes(job, films.get(job.place.board, ()), outputs, report, forced=forced))
    refused = check(claims, report)
    for job in jobs:
        if not is_writable(job.place.cache) and _has_to_render(job, report):
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


def _has_to_render(job: Job, report: Reporter) -> bool:
    store = job.place.store(report)
    return any(segment.key and store.state(segment.key) != "cached" for segment in job.segments)


def check_sheets(
    plans: Sequence[tuple[Place, FilmPlan]], outputs_of: Callable[[Path], Outputs], report: Reporter
) -> tuple[list[tuple[Place, FilmPlan]], list[Rejected]]:
    """The boards whose contact sheets may be written, and those that are refused."""
    claims = []
    for place, plan in plans:
        outputs = outputs_of(place.settings.cache)
        claims.append(PlannedWrites(place, plan, tuple(_sheets(place, plan, outputs)), outputs))
    refused = check(claims, report)
    left = [(place, plan) for place, plan in plans if place.board not in refused]
    return left, [Rejected(board, error) for board, error in refused.items()]


def check_page(job: Job, page: Path, outputs: Outputs, report: Reporter) -> None:
    """Raises InputError where a review may not be written."""
    target = Target(page, "its review", known(outputs, is_page))
    raise_first(check([PlannedWrites(job.place, job.plan, (target,), outputs)], report))


def check_bundle(job: Job, target: Path, outputs: Outputs, report: Reporter) -> None:
    """Raises InputError where a bundle may not be written."""

    def is_same_board(path: Path) -> bool:
        manifest = first_manifest(path)
        return manifest is not None and manifest.board == job.plan.board.name

    found = Target(target, "its bundle", known(outputs, is_same_board))
    raise_first(check([export_claim(job, [found], outputs)], report))


def export_claim(job: Job, targets: Sequence[Target], outputs: Outputs) -> PlannedWrites:
    """The writes of an export, whose targets the user can name."""
    remedy = "choose another folder with -o, or another name with --as"
    return PlannedWrites(job.place, job.plan, tuple(targets), outputs, elsewhere=remedy)


def raise_first(refused: dict[Path, InputError]) -> None:
    """Raise the error of the only board that was checked, if it was refused."""
    for error in refused.values():
        raise error


def _film_writes(
    job: Job, films: Sequence[Job], outputs: Outputs, report: Reporter, *, forced: bool
) -> PlannedWrites:
    """The films of a board, and what is put beside them."""
    targets = []
    for film in films:
        files = FilmFiles(film.place, film.plan, outputs)
        targets.append(Target(files.path, "its film", files.film))
        targets.append(Target(record_path(files.path), "the film's record", files.record, beside=True))
        if len(film.plan.shots) > 1 and not _is_folder(partial_film(files.path)):  # the film does not need it
            targets.append(Target(partial_film(files.path), "the film so far", files.partial, beside=True))
        if film.plan.cut.soft and any(shot.caption.strip() for shot in film.plan.shots):
            captions = files.path.with_suffix(".srt")
            targets.append(Target(captions, "the board's captions", files.captions, beside=True))

    def is_done() -> bool:
        store = job.place.store(report)
        return not forced and job.missing is None and all(is_finished(film, store) for film in films)

    return PlannedWrites(job.place, job.plan, tuple(targets), outputs, is_done)


def _sheets(place: Place, plan: FilmPlan, outputs: Outputs) -> Iterator[Target]:
    def look(path: Path) -> Ownership:
        return OURS if is_sheet(path) else known(outputs, is_sheet)(path)

    for number in range(1, -(-len(plan.shots) // CLIPS_PER_SHEET) + 1):
        yield Target(sheet_path(place.film, number), "its contact sheet", look, beside=True)


def _ownership(target: Target) -> Ownership:
    path = target.path
    if not os.path.lexists(path):
        return OURS
    if path.is_symlink():
        return LINK
    if _is_folder(path):
        return FOLDER
    return target.look(path) if is_plain(path) else ODD


def is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder, or the folder itself if it does not exist."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return os.access(there, os.W_OK)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _clash(
    claim: PlannedWrites, target: Target, writers: Sequence[tuple[PlannedWrites, Target]]
) -> Problem | None:
    """Two boards that would write one file."""
    for other, theirs in writers:
        if other is not claim:
            what = (
                f"{claim.place.board} would write {target.what} here, and {other.place.board} {theirs.what}"
            )
            remedy = "rename one, or run them apart with another -o"
            return Problem(f"{what}; {remedy}", file=str(target.path))
    return None


class _InputFiles:
    """Boards and every file that they name, by identity: links and spellings do not matter."""

    def __init__(self, claims: Iterable[PlannedWrites]) -> None:
        self._known: dict[tuple[int, int], tuple[Path, str, Path]] = {}
        for claim in claims:
            for path, role in _files_of(claim.place, claim.plan):
                identity = _identity(path)
                if identity:
                    self._known.setdefault(identity, (claim.place.board, role, path))

    def problem(self, claim: PlannedWrites, target: Target) -> Problem | None:
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
