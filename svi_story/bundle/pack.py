"""Packing a board into a bundle: same input, same bytes."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from svi_story import __version__
from svi_story.bundle.board import bundle_of
from svi_story.bundle.format import (
    BOARD,
    MANIFEST,
    MODE,
    VERSION,
    FileHash,
    Manifest,
    entry_members,
    file_member,
    input_hashes,
    name_problem,
    settings_of,
    write_manifest,
)
from svi_story.enginespec import spec_of
from svi_story.errors import InputError, Problem, RenderError
from svi_story.events import Warned
from svi_story.fields import format_value
from svi_story.files import atomic_file, disk, make_folder, open_regular, remove_stale_temps
from svi_story.storyboard.files import absent
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from svi_story.cache.outputs import Publish
    from svi_story.cache.store import Store
    from svi_story.enginespec import EngineOptions
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import FilmPlan
    from svi_story.storyboard.source import BoardFile

EPOCH = (1980, 1, 1, 0, 0, 0)
UNIX = 3
CHUNK = 2**20


@dataclass(frozen=True)
class Member:
    """A file to be packed."""

    name: str
    path: Path
    hash: FileHash


def pack(
    plan: FilmPlan,
    options: EngineOptions,
    target: Path,
    fingerprints: Fingerprints,
    *,
    missing: InputError | None = None,
    store: Store | None = None,
    publish: Publish = atomic_file,
) -> Path:
    """Write a board, all files that it names and the finished segments of `store`, if given, into one zip.

    LoRAs and weights are not included, only their hashes. `missing` is the reason if the plan has no keys.
    `publish` writes the file atomically. Returns `target`. Raises InputError for a board that cannot be
    packed, RenderError when the disk fails.
    """
    bundle = bundle_of(plan)
    name = bundle.zip if bundle else plan.board
    try:
        reason = name_problem(plan.board.name)
        if reason:
            what = f"its name {reason}; bundles are opened on other systems: rename it"
            raise InputError(Problem(what, file=str(plan.board)))
        board = load(plan.board, plan.resolver)
        if not board.digest == plan.digest == fingerprints.file(plan.board):
            what = "changed while it was packed; run the same command again"
            raise InputError(Problem(what, file=str(plan.board)))
        problems = list(_problems(board, plan, missing))
        if problems:
            raise InputError(*problems)
        entries: list[Member] = []
        if store is not None:
            if missing:  # without keys, its segments cannot be found
                raise missing
            entries, count = _entries(plan, store, fingerprints)
            if count:
                fingerprints.report(
                    Warned(f"{name}: {count} segments are not rendered yet, and not in the bundle")
                )
        if missing:
            why = f"{name}: cannot compute the cache keys on this machine, so the bundle has none"
            fingerprints.report(Warned(f"{why}: {missing.problems[0]}"))
        manifest, members = _collect(board, plan, options, entries, fingerprints)
    except InputError as error:
        raise InputError(*map(plan.resolver.rephrase, error.problems)) from error
    folder = target.absolute().parent
    with disk(target, "writing the bundle"):
        make_folder(folder)
        remove_stale_temps(folder)
        with publish(target) as temporary, ZipFile(temporary, "w", ZIP_STORED) as archive:
            _write(archive, manifest, members)
    return target


def _problems(board: BoardFile, plan: FilmPlan, missing: InputError | None) -> Iterator[Problem]:
    """Names that cannot be packed.

    Weights are not included and everything else is, so no name can mean both. LoRAs must exist, as they are
    found by their hash when the bundle is opened, unless the engine uses none or a bundle brought the hash.
    """
    weights = {each.name for each in board.named if each.kind == "weights"}
    for each in board.named:
        if each.kind != "weights" and each.name in weights:
            yield board.problem(
                each.loc, f"{format_value(each.name)} is also named as a LoRA; name another file"
            )
    if not spec_of(plan.engine).uses_weights:
        return
    known = _known_weights(plan)
    refused = {problem.file: problem for problem in (missing.problems if missing else ())}
    for each in board.named:
        if each.kind != "weights" or known.get(each.name):
            continue
        path = board.file(each.name)
        if reason := absent(path):
            remedy = "name a LoRA's file, so that its hash can go into the bundle"
            what = f"{format_value(each.name)} {reason}; {remedy}"
            yield board.problem(each.loc, what)
        elif str(path) in refused:
            yield board.problem(each.loc, f"{format_value(each.name)}: {refused[str(path)].what}")


def _known_weights(plan: FilmPlan) -> dict[str, FileHash | None]:
    """LoRAs whose hashes came with the board."""
    bundle = bundle_of(plan)
    return bundle.manifest.weights if bundle else {}


def _entries(plan: FilmPlan, store: Store, fingerprints: Fingerprints) -> tuple[list[Member], int]:
    """The files of the finished segments, of all takes, and how many segments are not finished."""
    members: list[Member] = []
    missing = 0
    for key in dict.fromkeys(segment.key for segment in (*plan.segments, *plan.other_segments)):
        entry = store.entry(key)
        if entry is None:
            missing += 1
            continue
        files = {name: entry.folder / name.rpartition("/")[2] for name in entry_members(key)}
        members += (_member(name, path, fingerprints) for name, path in files.items())
    return members, missing


def _collect(
    board: BoardFile,
    plan: FilmPlan,
    options: EngineOptions,
    entries: Sequence[Member],
    fingerprints: Fingerprints,
) -> tuple[Manifest, list[Member]]:
    """The manifest, and the members in the order in which they are written."""
    members = {BOARD: _member(BOARD, board.path, fingerprints)}
    files: dict[str, str] = {}
    weights: dict[str, FileHash | None] = {}
    known = _known_weights(plan)
    for each in board.named:
        path = board.file(each.name)
        if each.kind == "weights":
            weights[each.name] = known.get(each.name)
            if weights[each.name] is None:
                with suppress(InputError, OSError):  # an animatic needs no LoRA
                    weights[each.name] = FileHash(sha256=fingerprints.file(path), bytes=path.stat().st_size)
        else:
            member = _member(file_member(fingerprints.file(path), each.name), path, fingerprints)
            members[member.name], files[each.name] = member, member.name
    members |= {member.name: member for member in entries}
    ordered = [members[name] for name in sorted(members)]
    segments = [segment for segment in plan.segments if segment.key]
    manifest = Manifest(
        bundle=VERSION,
        tool=f"svi-story {__version__}",
        board=board.path.name,
        settings=settings_of(plan.engine, options),
        members={member.name: member.hash for member in ordered},
        files=dict(sorted(files.items())),
        weights=dict(sorted(weights.items())),
        keys=tuple(segment.key for segment in segments),
        made_of=dict(sorted(input_hashes(segments).items())),
        takes=tuple(segment.key for segment in plan.other_segments if segment.key),
    )
    return manifest, ordered


def _member(name: str, path: Path, fingerprints: Fingerprints) -> Member:
    digest = fingerprints.file(path)
    with disk(path, "reading for the bundle"):
        return Member(name, path, FileHash(bytes=path.stat().st_size, sha256=digest))


def _write(archive: ZipFile, manifest: Manifest, members: Sequence[Member]) -> None:
    """The manifest comes first, so that it can be read without the rest."""
    archive.writestr(_info(MANIFEST), write_manifest(manifest))
    for member in members:
        info = _info(member.name)
        info.file_size = member.hash.bytes
        digest, size = hashlib.sha256(), 0
        with open_regular(member.path) as source, archive.open(info, "w") as target:
            while size <= member.hash.bytes and (chunk := source.read(CHUNK)):
                digest.update(chunk)
                size += len(chunk)
                target.write(chunk)
        if (size, digest.hexdigest()) != (member.hash.bytes, member.hash.sha256):
            what = "changed while it was packed; run the same command again"
            raise RenderError(Problem(what, file=str(member.path)))


def _info(name: str) -> ZipInfo:
    info = ZipInfo(name, EPOCH)
    info.create_system, info.external_attr = UNIX, MODE
    return info
