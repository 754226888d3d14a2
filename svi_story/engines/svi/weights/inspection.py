"""Are the weights what they should be? Every file read whole: its header, shapes, hash, numbers and place."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from svi_story.engines.svi.weights.candidates import EXPERTS
from svi_story.engines.svi.weights.catalogue import VARIANTS, LoraPair, ModelFiles
from svi_story.engines.svi.weights.formats import SUFFIXES, read_weights
from svi_story.engines.svi.weights.hashes import DownloadRecords, ignore_progress, name_of
from svi_story.engines.svi.weights.loading import read_text_encoder, read_transformer, read_vae
from svi_story.engines.svi.weights.locate import BASE, KNOWN_EXPERTS, WHAT
from svi_story.engines.svi.weights.lora import LoraUse, check_distill, check_svi_pair, known_role, read_lora
from svi_story.engines.svi.weights.prepared import examine
from svi_story.engines.svi.weights.tensors import is_finite
from svi_story.errors import InputError, Problem, collect_problems, shorten_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.engines import Digest
    from svi_story.engines.svi.weights.candidates import Expert
    from svi_story.engines.svi.weights.hashes import DownloadRecord, Progress
    from svi_story.engines.svi.weights.locate import PartStatus, Weights


NO_TORCH = (
    "shapes and numbers were not checked: that needs torch and diffusers (pip install 'svi-story[svi]')"
)


@dataclass(frozen=True)
class FileReport:
    """What was found out about one file."""

    part: str
    file: Path
    format: str
    precision: str
    """The type that most of its numbers are stored in."""
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


def inspect(
    weights: Weights, parts: Sequence[PartStatus], digest: Digest, progress: Progress = ignore_progress
) -> Report:
    """Read every byte of these parts. What is missing or broken is reported, the rest checked all the same.

    Raises InputError when a file cannot be read at all.
    """
    whole = [status for status in parts if not status.problems]
    problems = [problem for status in parts for problem in status.problems]
    whole_files = [file for status in whole for file in status.files]
    digests = collect_problems([partial(digest, file) for file in whole_files])
    hashes = dict(zip(whole_files, digests, strict=True))
    records = [DownloadRecords.load(folder) for folder in weights.where.folders]
    for file, sha256 in hashes.items():
        record = _record_of(file, records)
        if record is not None and record.expected.sha256 not in ("", sha256):
            what = f"is not what was downloaded from {record.repo}; delete it, then download it again"
            problems.append(Problem(what, file=str(file)))
    notes = _check_places(whole, digest, problems)
    if find_spec("torch") and find_spec("diffusers"):
        _check_shapes(weights, whole, problems)
        for status in whole:
            for file in status.files:
                if file.suffix in SUFFIXES:
                    problems += shorten_problems(_not_finite(file, progress))
    elif whole:
        notes.append(NO_TORCH)
    models = {file: each for each in weights.used.values() for file in each.files}
    files = tuple(
        FileReport(
            status.part.name,
            file,
            models[file].format if file in models else "",
            models[file].precision if file in models else "",
            file.stat().st_size,
            hashes[file],
            _known_as(file, hashes[file], records),
        )
        for status in whole
        for file in status.files
    )
    files += _check_prepared(weights, digest, problems, notes)
    return Report(files, tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(notes)))


def _check_prepared(
    weights: Weights, digest: Digest, problems: list[Problem], notes: list[str]
) -> tuple[FileReport, ...]:
    """Read the experts that were prepared; add those that are damaged, and note those that are not used."""
    found: list[FileReport] = []
    for file in weights.prepared:
        with _gathered(problems):
            manifest, reason = examine(file, weights.experts, digest)
            if reason:
                notes.append(f"{file}: {reason}")
            part, size = f"prepared {manifest.origin.expert}", file.stat().st_size
            loras = ", ".join(lora.name for lora in manifest.origin.loras)
            found.append(FileReport(part, file, "int8", "I8", size, digest(file), f"with {loras}"))
    return tuple(found)


@contextmanager
def _gathered(problems: list[Problem]) -> Iterator[None]:
    """Add what a check raises to the problems, and go on."""
    try:
        yield
    except InputError as error:
        problems += error.problems


def _record_of(file: Path, records: Sequence[DownloadRecords]) -> DownloadRecord | None:
    return next((found for each in records if (found := each.of(file))), None)


def _known_as(file: Path, sha256: str, records: Sequence[DownloadRecords]) -> str:
    """What a file is by its hash: a published expert or LoRA, or what was downloaded."""
    record = _record_of(file, records)
    if record is not None and record.expected.sha256 == sha256:
        return f"{record.repo} at {record.commit[:12]}"
    if sha256 in KNOWN_EXPERTS:
        return WHAT[KNOWN_EXPERTS[sha256]].removeprefix("the ")
    return str(known_role(sha256) or "")


def _check_places(whole: Sequence[PartStatus], digest: Digest, problems: list[Problem]) -> list[str]:
    """Add LoRAs that lie in another's place and weights that both experts share; returns notes."""
    notes: list[str] = []
    files: dict[str, tuple[Path, ...]] = {status.part.name: status.files for status in whole}

    for variant in VARIANTS:
        if pair := files.get(f"svi-{variant}"):
            with _gathered(problems):
                notes += check_svi_pair(variant, LoraPair(*pair), digest)
    if pair := files.get("distill"):
        with _gathered(problems):
            check_distill(LoraPair(*pair))
    high, low = (
        {digest(file): file for file in files.get(expert, ()) if file.suffix in SUFFIXES}
        for expert in EXPERTS
    )
    what = "is the same file as {}; the experts differ, so download both again"
    problems += [
        Problem(what.format(low[sha256]), file=str(high[sha256])) for sha256 in high if sha256 in low
    ]
    return notes


def _check_shapes(weights: Weights, whole: Sequence[PartStatus], problems: list[Problem]) -> None:
    """Add tensors that do not make these models, and LoRAs that do not fit the experts."""
    used = {status.part.name: weights.used[status.part.name] for status in whole if status.part.name in BASE}
    files = {name: ModelFiles(each.files, each.config) for name, each in used.items()}
    experts: dict[Expert, Mapping[str, tuple[int, ...]]] = {}
    for expert in EXPERTS:
        if expert in files:
            with _gathered(problems):
                blueprint = read_transformer(files[expert])
                experts[expert] = {name: entry.shape for name, entry in blueprint.entries.items()}
    if "vae" in files:
        with _gathered(problems):
            read_vae(files["vae"])
    if "text_encoder" in files:
        with _gathered(problems):
            read_text_encoder(files["text_encoder"])
    if len(experts) == len(EXPERTS):
        high, low = experts["high"], experts["low"]
        wrong = sorted(name for name in {*high, *low} if high.get(name) != low.get(name))
        what = "{}: {} in the high-noise expert, {} in the low-noise one; they are not of one model"
        problems += shorten_problems(
            [Problem(what.format(name, high.get(name), low.get(name))) for name in wrong]
        )
    for status in whole:
        if status.part.name not in BASE:
            pair = LoraPair(*status.files)
            for expert, shapes in experts.items():
                with _gathered(problems):
                    read_lora(LoraUse(pair.of(expert), 1.0, whole=status.part.name != "distill"), shapes)


def _not_finite(file: Path, progress: Progress) -> list[Problem]:
    entries = list(read_weights(file).values())
    found: list[Problem] = []
    for done, entry in enumerate(entries, 1):
        if not is_finite(entry.read()):
            what = f"{entry.key} holds NaN or Inf; download it again"
            found.append(Problem(what, file=str(file)))
        progress(f"{name_of(file)}: numbers", done, len(entries))
    return found
