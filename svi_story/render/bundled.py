"""A bundle's board on this machine: its files, its weights, and whether the film will be the same."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.fields import format_value as shown
from svi_story.plan.resolve import plan_film
from svi_story.render.bundle import FILES, made_of
from svi_story.render.weights import find_weights
from svi_story.storyboard.schema import named_files
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import FilmPlan, Segment
    from svi_story.render.bundle import Sealed
    from svi_story.render.unpack import Unpacked
    from svi_story.storyboard.source import BoardFile

MOST_NAMED = 5


def load_bundled(bundle: Unpacked, models: Path | None, fingerprints: Fingerprints) -> BoardFile:
    """The board of a bundle; its weights are looked for below `models`, or nowhere (None).

    Raises InputError for whatever is wrong with it, as for names of files that the bundle does not hold.
    """
    manifest = bundle.manifest
    wanted = list(dict.fromkeys(sealed for sealed in manifest.weights.values() if sealed))
    found = find_weights(wanted, models, fingerprints) if models else {}
    weights = {
        name: found.get(sealed.sha256 if sealed else "", _lacking(bundle, sealed))
        for name, sealed in manifest.weights.items()
    }
    files = {name: bundle.place(member) for name, member in manifest.files.items()}
    board = load(bundle.board, {**weights, **files})
    problems = [
        board.problem(
            each.loc, f"{shown(each.name)} is not in the bundle, and its board can name nothing else"
        )
        for each in named_files(board.story)
        if each.name not in (manifest.weights if each.kind == "weights" else files)
    ]
    if problems:
        raise InputError(*problems)
    return board


def bundled_film(
    bundle: Unpacked, engine: str | None, models: Path | None, fingerprints: Fingerprints
) -> tuple[FilmPlan, Mapping[str, Path]]:
    """A bundle's board, planned, and where the files lie that it names.

    Whatever is to be said of it names the bundle, and its files as the author does. Raises InputError.
    """
    try:
        board = load_bundled(bundle, models, fingerprints)
        plan = plan_film(board, fingerprints, engine)
    except InputError as error:
        raise InputError(*as_named(error.problems, bundle)) from error
    problems = as_named([lint.problem for lint in plan.lints], bundle)
    lints = tuple(replace(lint, problem=told) for lint, told in zip(plan.lints, problems, strict=True))
    return replace(plan, lints=lints), board.elsewhere or {}


def as_named(problems: Iterable[Problem], bundle: Unpacked) -> list[Problem]:
    """The same about the author's files, which nobody knows by their places in the cache."""
    manifest = bundle.manifest
    names = {str(bundle.place(member)): name for name, member in manifest.files.items()}
    names[str(bundle.board)] = manifest.board
    place = re.compile(f"{re.escape(str(bundle.board))}|{re.escape(str(bundle.place(FILES)))}[a-z0-9_.-]+")

    def named(match: re.Match[str]) -> str:
        place = match[0] if match[0] in names else match[0].rstrip(".")  # a sentence may end with it
        return shown(names[place]) + match[0][len(place) :] if place in names else match[0]

    def told(problem: Problem) -> Problem:
        file = names.get(problem.file)
        return replace(
            problem,
            what=place.sub(named, problem.what),
            file=f"{bundle.zip} ({file})" if file else problem.file,
        )

    return [told(problem) for problem in problems]


def explained(error: InputError, bundle: Unpacked, models: Path) -> InputError:
    """The same, with what to do about weights that are not on this machine."""
    problems = [_explained(problem, bundle, models) for problem in error.problems]
    return InputError(*dict.fromkeys(problems))


def _explained(problem: Problem, bundle: Unpacked, models: Path) -> Problem:
    for name, sealed in bundle.manifest.weights.items():
        if problem.file != str(_lacking(bundle, sealed)):
            continue
        what = f"the LoRA {shown(name)} was not there when this bundle was packed; pack it where it is"
        if sealed:
            what = (
                f"the LoRA {shown(name)} is not below {models}: put it there, under any name that ends in "
                f".safetensors ({sealed.bytes} bytes, sha256 {sealed.sha256})"
            )
        return Problem(what, file=str(bundle.zip))
    return problem


def _lacking(bundle: Unpacked, sealed: Sealed | None) -> Path:
    """Stands for weights that are not on this machine: nothing is ever there."""
    return bundle.folder / "lacking" / (sealed.sha256 if sealed else "unknown")


def differs(bundle: Unpacked, segments: Sequence[Segment]) -> str:
    """What makes these frames others than those the bundle was packed with; empty when nothing does."""
    packed = bundle.manifest.keys
    if not packed or not segments or packed == tuple(segment.key for segment in segments):
        return ""
    here, there = made_of(segments), bundle.manifest.made_of
    odd = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    why = f"{', '.join(odd[:MOST_NAMED])} differ" if odd else "later segments differ"
    return f"{bundle.zip}: these are not the frames it was packed with: {why}"
