"""Packing a board into a bundle: same input, same bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from svi_story import __version__
from svi_story.enginespec import spec_of
from svi_story.errors import InputError, Problem, RenderError
from svi_story.events import Warned
from svi_story.fields import format_value as shown
from svi_story.files import atomic_file, disk, make_folder, open_regular, remove_stale_temps
from svi_story.render.bundle import (
    BOARD,
    MANIFEST,
    MODE,
    VERSION,
    Manifest,
    Sealed,
    entry_members,
    file_member,
    made_of,
    unfit_name,
    write_manifest,
)
from svi_story.render.bundled import as_named, load_bundled
from svi_story.render.jobs import settings_of
from svi_story.storyboard.files import absent
from svi_story.storyboard.schema import named_files
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from svi_story.cache.outputs import Publish
    from svi_story.cache.store import Store
    from svi_story.events import Reporter
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.render.jobs import Job
    from svi_story.storyboard.schema import NamedFile as Named
    from svi_story.storyboard.source import BoardFile

EPOCH = (1980, 1, 1, 0, 0, 0)
UNIX = 3
CHUNK = 2**20


@dataclass(frozen=True)
class Member:
    """A file on its way into a bundle."""

    name: str
    path: Path
    sealed: Sealed


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle."""

    manifest: Manifest
    members: tuple[Member, ...]


def pack(
    job: Job,
    target: Path,
    fingerprints: Fingerprints,
    store: Store | None,
    report: Reporter,
    publish: Publish = atomic_file,
) -> Path:
    """Write a board with all it names into one zip; with the finished segments of `store`, if one is given.

    LoRAs and weights stay outside: only their hashes are noted. The file is in place at once, by `publish`.
    Returns `target`. Raises InputError for a board that cannot be packed, RenderError when the disk refuses.
    """
    try:
        contents = _collect(job, fingerprints, store, report)
    except InputError as error:
        bundle = job.place.bundle
        raise InputError(*(as_named(error.problems, bundle) if bundle else error.problems)) from error
    folder = target.absolute().parent
    with disk(target, "writing the bundle"):
        make_folder(folder)
        remove_stale_temps(folder)
        with publish(target) as temporary, ZipFile(temporary, "w", ZIP_STORED) as archive:
            _write(archive, contents)
    return target


def _collect(job: Job, fingerprints: Fingerprints, store: Store | None, report: Reporter) -> Contents:
    board = _board_of(job, fingerprints)
    named = tuple(named_files(board.story))
    problems = [*_two_kinds(board, named), *_bad_weights(job, board, named)]
    if problems:
        raise InputError(*problems)
    if store is not None:
        job.require_keys()  # else nobody can tell which of the finished segments are its own
    members = {BOARD: _member(BOARD, board.path, fingerprints)}
    files: dict[str, str] = {}
    weights: dict[str, Sealed | None] = {}
    known = job.place.bundle.manifest.weights if job.place.bundle else {}
    for each in named:
        path = board.file(each.name)
        if each.kind == "weights":
            weights[each.name] = known.get(each.name) or _weights(path, fingerprints)
        else:
            member = _member(file_member(fingerprints.file(path), each.name), path, fingerprints)
            members[member.name], files[each.name] = member, member.name
    members |= {member.name: member for member in _entries(job, store, fingerprints, report)}
    if job.missing:
        why = f"{job.place.board}: this machine cannot tell the keys of its frames, so the bundle has none"
        report(Warned(f"{why}: {job.missing.problems[0]}"))
    manifest = Manifest(
        bundle=VERSION,
        tool=f"svi-story {__version__}",
        board=board.path.name,
        settings=settings_of(job),
        members={name: members[name].sealed for name in sorted(members)},
        files=dict(sorted(files.items())),
        weights=dict(sorted(weights.items())),
        keys=() if job.missing else tuple(segment.key for segment in job.segments),
        made_of={} if job.missing else dict(sorted(made_of(job.segments).items())),
    )
    return Contents(manifest, tuple(members[name] for name in sorted(members)))


def _board_of(job: Job, fingerprints: Fingerprints) -> BoardFile:
    """The board as it was planned. Raises InputError when it changed since, or has a name that cannot go."""
    path = job.plan.board
    reason = unfit_name(path.name)
    if reason:
        what = f"its name {reason}; bundles are opened on other systems: rename it"
        raise InputError(Problem(what, file=str(path)))
    bundle = job.place.bundle
    board = load_bundled(bundle, job.options.models, fingerprints) if bundle else load(path)
    if not board.digest == job.plan.digest == fingerprints.file(path):
        raise InputError(Problem("changed while it was packed; run the same command again", file=str(path)))
    return board


def _two_kinds(board: BoardFile, named: Sequence[Named]) -> Iterator[Problem]:
    """Names that mean weights here and something else there: weights stay outside, and all else goes in."""
    weights = {each.name for each in named if each.kind == "weights"}
    for each in named:
        if each.kind != "weights" and each.name in weights:
            yield board.problem(each.loc, f"{shown(each.name)} is also named as a LoRA; name another file")


def _bad_weights(job: Job, board: BoardFile, named: Sequence[Named]) -> Iterator[Problem]:
    """LoRAs that are not there, or are none: whoever gets the bundle could not look for them by their hash.

    An animatic uses none; those of a bundle are known by it.
    """
    if not spec_of(job.plan.engine).uses_weights:
        return
    known = job.place.bundle.manifest.weights if job.place.bundle else {}
    wrong = {problem.file: problem for problem in (job.missing.problems if job.missing else ())}
    for each in named:
        path = board.file(each.name)
        if each.kind != "weights" or known.get(each.name):
            continue
        if reason := absent(path):
            what = f"{shown(each.name)} {reason}; name a LoRA's file, so that its hash can go into the bundle"
            yield board.problem(each.loc, what)
        elif str(path) in wrong:
            yield board.problem(each.loc, f"{shown(each.name)}: {wrong[str(path)].what}")


def _member(name: str, path: Path, fingerprints: Fingerprints) -> Member:
    digest = fingerprints.file(path)
    with disk(path, "reading for the bundle"):
        return Member(name, path, Sealed(bytes=path.stat().st_size, sha256=digest))


def _weights(path: Path, fingerprints: Fingerprints) -> Sealed | None:
    """What LoRA the board means; None where it is not there (an animatic needs none)."""
    try:
        return Sealed(sha256=fingerprints.file(path), bytes=path.stat().st_size)
    except (InputError, OSError):
        return None


def _entries(job: Job, store: Store | None, fingerprints: Fingerprints, report: Reporter) -> Iterator[Member]:
    """The finished segments that are whole; those that are missing are told."""
    if store is None:
        return
    missing = 0
    for key in dict.fromkeys(segment.key for segment in job.segments):
        entry = store.entry(key)
        if entry is None:
            missing += 1
            continue
        for name in entry_members(key):
            yield _member(name, entry.folder / name.rpartition("/")[2], fingerprints)
    if missing:
        report(Warned(f"{job.place.board}: {missing} segments are not made yet, and not in the bundle"))


def _write(archive: ZipFile, contents: Contents) -> None:
    """The manifest first: whoever reads from the front knows what is to come."""
    archive.writestr(_info(MANIFEST), write_manifest(contents.manifest))
    for member in contents.members:
        info = _info(member.name)
        info.file_size = member.sealed.bytes
        digest, size = hashlib.sha256(), 0
        with open_regular(member.path) as source, archive.open(info, "w") as target:
            while size <= member.sealed.bytes and (chunk := source.read(CHUNK)):
                digest.update(chunk)
                size += len(chunk)
                target.write(chunk)
        if (size, digest.hexdigest()) != (member.sealed.bytes, member.sealed.sha256):
            what = "changed while it was packed; run the same command again"
            raise RenderError(Problem(what, file=str(member.path)))


def _info(name: str) -> ZipInfo:
    info = ZipInfo(name, EPOCH)
    info.create_system, info.external_attr = UNIX, MODE
    return info
