"""Are the weights what they should be? Every file read whole: its header, shapes, hash, numbers and place."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.engines.svi.catalog import VARIANTS
from svi_story.engines.svi.digests import Records, hash_file, ignore_progress
from svi_story.engines.svi.layout import Pair
from svi_story.engines.svi.pairs import check_distill, check_svi_pair, known_role
from svi_story.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.engines.svi.digests import Progress
    from svi_story.engines.svi.stock import Holding

NO_TORCH = (
    "shapes and numbers were not checked: that needs torch and diffusers (pip install 'svi-story[svi]')"
)
PAIRS = ("svi-2.0", "svi-2.0-pro", "distill")

Hashes = Mapping[Path, str]
"""Each file's sha256 in hex."""


@dataclass(frozen=True)
class FileReport:
    """What was found out about one file."""

    part: str
    file: Path
    bytes: int
    sha256: str
    known: str
    """What the file is known to be by its hash; empty where that is not known."""


@dataclass(frozen=True)
class Report:
    """What was found out about a models folder."""

    files: tuple[FileReport, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def inspect(root: Path, holdings: Sequence[Holding], progress: Progress = ignore_progress) -> Report:
    """Read every byte of these parts. What is missing or broken is reported, the rest checked all the same.

    Raises InputError when a file cannot be read at all.
    """
    whole = [held for held in holdings if not held.problems]
    problems = [problem for held in holdings for problem in held.problems]
    hashes = _hash_all([file for held in whole for file in held.files], progress)
    records = Records.load(root)
    problems += _changed(records, hashes)
    notes = _check_places(whole, hashes, problems)
    if find_spec("torch") and find_spec("diffusers"):
        from svi_story.engines.svi.shapes import check_numbers, check_shapes

        check_shapes(root, whole, problems)
        check_numbers(whole, problems, progress)
    elif whole:
        notes.append(NO_TORCH)
    files = tuple(
        FileReport(
            held.part.name, file, file.stat().st_size, hashes[file], _known(file, hashes[file], records)
        )
        for held in whole
        for file in held.files
    )
    return Report(files, tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(notes)))


@contextmanager
def gathered(problems: list[Problem]) -> Iterator[None]:
    """Add what a check raises to the problems, and go on."""
    try:
        yield
    except InputError as error:
        problems += error.problems


def pair_of(held: Holding) -> Pair | None:
    """The files of a part that is a pair of LoRAs."""
    return Pair(*held.files) if held.part.name in PAIRS else None


def _hash_all(files: Sequence[Path], progress: Progress) -> dict[Path, str]:
    hashes: dict[Path, str] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            hashes[file] = hash_file(file, progress)
        except OSError as error:
            problems.append(Problem(f"cannot be read: {error.strerror}", file=str(file)))
    if problems:
        raise InputError(*problems)
    return hashes


def _known(file: Path, sha256: str, records: Records) -> str:
    """What a file is by its hash: an official LoRA, or what was downloaded."""
    record = records.of(file)
    if record is not None and record.expected.sha256 == sha256:
        return f"{record.repo} at {record.commit[:12]}"
    return str(known_role(sha256) or "")


def _changed(records: Records, hashes: Hashes) -> list[Problem]:
    """The files that are not any more what was downloaded."""
    problems: list[Problem] = []
    for file, sha256 in hashes.items():
        record = records.of(file)
        if record is not None and record.expected.sha256 not in ("", sha256):
            what = f"is not what was downloaded from {record.repo}; delete it, then download it again"
            problems.append(Problem(what, file=str(file)))
    return problems


def _check_places(whole: Sequence[Holding], hashes: Hashes, problems: list[Problem]) -> list[str]:
    """Add LoRAs that lie in another's place and weights that both experts share; returns notes."""
    notes: list[str] = []
    pairs: dict[str, Pair] = {held.part.name: pair for held in whole if (pair := pair_of(held))}

    def digest(file: Path) -> str:
        return hashes.get(file) or hash_file(file)

    for variant in VARIANTS:
        if pair := pairs.get(f"svi-{variant}"):
            with gathered(problems):
                notes += check_svi_pair(variant, pair, digest)
    if pair := pairs.get("distill"):
        with gathered(problems):
            check_distill(pair)
    problems += _shared(whole, hashes)
    return notes


def _shared(whole: Sequence[Holding], hashes: Hashes) -> list[Problem]:
    """Weight files that are the same in both experts."""
    weights = {
        held.part.name: {hashes[file]: file for file in held.files if file.suffix == ".safetensors"}
        for held in whole
    }
    high, low = weights.get("high", {}), weights.get("low", {})
    what = "is the same file as {}; the experts differ, so download both again"
    return [Problem(what.format(low[sha256]), file=str(high[sha256])) for sha256 in high if sha256 in low]
