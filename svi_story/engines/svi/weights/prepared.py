"""Experts that were merged with their LoRAs and quantised before: a start reads 14.5 GB of each, not 57.

A prepared expert is a safetensors file with the parameters as they are held in memory, by diffusers' names,
and a manifest beside it, written last: what it was made from, and its hash. The last bits of a merge depend
on the device and on torch. So an expert is used only where it has the numbers that would be computed here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from svi_story.commands import suggest
from svi_story.engines.svi.device import describe
from svi_story.engines.svi.weights.candidates import EXPERTS, PREPARED, PREPARED_SUFFIX
from svi_story.engines.svi.weights.download import SPARE, free_space
from svi_story.engines.svi.weights.loading import (
    LoadingProgress,
    read_transformer,
    read_weights,
    typed_transformer,
)
from svi_story.engines.svi.weights.lora import recipes
from svi_story.engines.svi.weights.tensors import MAX_FILE, read_safetensors
from svi_story.errors import InputError, Problem, collect_problems
from svi_story.events import Warned
from svi_story.fields import JsonModel
from svi_story.files import atomic_file, disk, make_folder, read_regular, remove_stale_temps, write_atomic
from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from svi_story.engines import Digest
    from svi_story.engines.svi.experts import ExpertLoras
    from svi_story.engines.svi.weights.candidates import Expert
    from svi_story.engines.svi.weights.catalogue import ModelFiles, ModelPaths
    from svi_story.engines.svi.weights.loading import Blueprint, Placement
    from svi_story.engines.svi.weights.lora import LoraUse, Recipe
    from svi_story.engines.svi.weights.tensors import StoredTensor
    from svi_story.events import Reporter

STORED_AS = {"int8": "I8", "bfloat16": "BF16", "float32": "F32"}
"""torch's types -> as safetensors calls them."""


class FileMark(JsonModel):
    """A file by its content."""

    name: str
    sha256: str


class LoraMark(FileMark):
    """A LoRA with its strength."""

    strength: float


class Origin(JsonModel):
    """All that the numbers of a prepared expert depend on."""

    format: Literal[1] = 1
    expert: Literal["high", "low"]
    weights: Literal["int8"] = "int8"
    dtype: str
    """Of what is not held in int8."""
    sources: tuple[FileMark, ...]
    loras: tuple[LoraMark, ...]
    """In the order that they are added."""
    made_with: dict[str, str]
    """Device, torch and CUDA; on a CPU also how many threads."""

    def difference(self, wanted: Origin) -> str:
        """Why it has other numbers than are wanted; empty where it has the same."""
        if _contents(self.sources) != _contents(wanted.sources):
            return f"was made from another {', '.join(mark.name for mark in self.sources)}"
        if _contents(self.loras) != _contents(wanted.loras):
            return f"was made with other LoRAs ({_loras(self)}; wanted are {_loras(wanted)})"
        if self.dtype != wanted.dtype:
            return f"was made for --dtype {self.dtype}"
        others = (name for name, value in self.made_with.items() if wanted.made_with.get(name) != value)
        name = next(others, "")
        now = wanted.made_with.get(name, "none")
        return f"was made with {name} {self.made_with[name]}, here it is {now}" if name else ""

    @property
    def file_name(self) -> str:
        """Of the file with an expert of this origin: the same for the same numbers."""
        values = {**self.model_dump(), "sources": _contents(self.sources), "loras": _contents(self.loras)}
        return f"{self.expert}-{key_of(values)[:16]}{PREPARED_SUFFIX}"


class PreparedManifest(JsonModel):
    """What a prepared expert was made from, and what it contains."""

    origin: Origin
    bytes: int = Field(ge=0)
    sha256: str
    versions: dict[str, str]
    """Of what else was involved, for people."""


def _contents(marks: Iterable[FileMark]) -> list[dict[str, str | float]]:
    """Marks without the files' names."""
    return [mark.model_dump(exclude={"name"}) for mark in marks]


def _loras(origin: Origin) -> str:
    return ", ".join(f"{lora.name} at {lora.strength:g}" for lora in origin.loras) or "none"


def origin_of(
    expert: Expert,
    files: ModelFiles,
    loras: Sequence[LoraUse],
    dtype: str,
    made_with: Mapping[str, str],
    digest: Digest,
) -> Origin:
    """What an expert with these LoRAs is made from here. Raises InputError for files that cannot be read."""
    return Origin(
        expert=expert,
        dtype=dtype,
        sources=tuple(FileMark(name=file.name, sha256=digest(file)) for file in files.weights),
        loras=tuple(
            LoraMark(name=use.file.name, sha256=digest(use.file), strength=use.strength)
            for use in loras
            if use.strength
        ),
        made_with={**made_with},
    )


def manifest_file(file: Path) -> Path:
    """The manifest beside a prepared expert."""
    return file.with_suffix(".json")


def _again() -> str:
    return f"prepare it again: {suggest('models prepare')}"


def read_manifest(file: Path) -> PreparedManifest:
    """The manifest of a prepared expert. Raises InputError where there is none, or it cannot be read."""
    beside = manifest_file(file)
    try:
        return PreparedManifest.model_validate_json(read_regular(beside, MAX_FILE))
    except FileNotFoundError as error:
        what = f"was not completed; {_again()}, or delete it"
        raise InputError(Problem(what, file=str(file))) from error
    except (OSError, ValidationError) as error:
        raise InputError(Problem(f"is no manifest; delete it, then {_again()}", file=str(beside))) from error


def check_content(file: Path, manifest: PreparedManifest, digest: Digest) -> None:
    """Raises InputError unless a prepared expert is the file that its manifest describes.

    `digest` gives nothing for files whose hash is not known.
    """
    size = file.stat().st_size
    if size != manifest.bytes:
        what = f"has {size} bytes instead of {manifest.bytes}; delete it, then {_again()}"
        raise InputError(Problem(what, file=str(file)))
    if digest(file) not in ("", manifest.sha256):
        what = f"has another content than was written (by its sha256); delete it, then {_again()}"
        raise InputError(Problem(what, file=str(file)))


def examine(
    file: Path, sources: Mapping[str, Sequence[Path]], digest: Digest
) -> tuple[PreparedManifest, str]:
    """The manifest of a prepared expert, and why it is not used with these sources of experts, if it is not.

    LoRAs are not compared. Raises InputError where it cannot be used at all, as `check_content`.
    """
    manifest = read_manifest(file)
    check_content(file, manifest, digest)
    expert, hashes = manifest.origin.expert, [mark.sha256 for mark in manifest.origin.sources]
    found = [digest(source) for source in sources.get(expert, ())]
    if all(found) and found != hashes:
        return manifest, f"stale: was made from another file of the {expert}-noise expert"
    return manifest, ""


def read_prepared(
    file: Path, manifest: PreparedManifest, blueprint: Blueprint, placement: Placement, digest: Digest
) -> dict[str, StoredTensor]:
    """The parameters of a prepared expert, not read yet.

    Raises InputError where its content is not what was written, or does not fit the expert.
    """
    check_content(file, manifest, digest)
    entries, _ = read_safetensors(file)
    wanted = {
        name: (tuple(parameter.shape), _stored_as(parameter))
        for name, parameter in typed_transformer(blueprint, placement).named_parameters()
    }
    found = {name: (entry.shape, entry.dtype) for name, entry in entries.items()}
    wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        what = f"{name} is {found.get(name, 'missing')} instead of {wanted.get(name, 'none')}"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(Problem(f"{what}{more}; delete the file, then {_again()}", file=str(file)))
    return entries


@dataclass
class PreparedExperts:
    """The prepared experts of this machine, each used only where it has the numbers that are wanted."""

    files: Sequence[Path]
    placement: Placement
    digest: Digest
    report: Reporter
    _warned: set[str] = field(default_factory=set)

    def find(self, origin: Origin, blueprint: Blueprint) -> dict[str, StoredTensor] | None:
        """The parameters of an expert; None where no file fits, which is reported with the reason."""
        reasons: list[str] = []
        for file in self.files:
            try:
                manifest = read_manifest(file)
                if manifest.origin.expert != origin.expert:
                    continue
                if reason := manifest.origin.difference(origin):
                    reasons.append(f"{file} {reason}")
                    continue
                return read_prepared(file, manifest, blueprint, self.placement, self.digest)
            except (InputError, OSError) as error:
                reasons.append(str(error))
        if reasons:
            more = f" (and {len(reasons) - 1} more that do not fit)" if len(reasons) > 1 else ""
            what = f"the {origin.expert}-noise expert is read from its sources, as no prepared one fits"
            message = f"{what}: {reasons[0]}{more}; {suggest('models prepare')} makes one that does"
            if message not in self._warned:
                self._warned.add(message)
                self.report(Warned(message))
        return None


@dataclass(frozen=True)
class ExpertToPrepare:
    """An expert with its LoRAs, and the file that it is prepared in."""

    target: Path
    origin: Origin
    blueprint: Blueprint
    recipes: Mapping[str, Recipe]
    placement: Placement
    there: bool
    """Whether it is prepared already."""

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What is written, on "meta"."""
        return dict(typed_transformer(self.blueprint, self.placement).named_parameters())


def plan_experts(
    paths: ModelPaths, lora_sets: Iterable[ExpertLoras], placement: Placement, folder: Path, digest: Digest
) -> list[ExpertToPrepare]:
    """Both experts with each set of LoRAs, each once. Reads headers, and hashes files that are not known yet.

    Raises InputError with everything that is wrong with them.
    """
    found = collect_problems([partial(read_transformer, paths.expert(expert)) for expert in EXPERTS])
    blueprints = dict(zip(EXPERTS, found, strict=True))
    dtype, made_with = str(placement.dtype).removeprefix("torch."), describe(placement.device)

    def plan(expert: Expert, loras: ExpertLoras) -> ExpertToPrepare:
        blueprint = blueprints[expert]
        changes = recipes(loras[expert], {name: entry.shape for name, entry in blueprint.entries.items()})
        origin = origin_of(expert, paths.expert(expert), loras[expert], dtype, made_with, digest)
        target = folder / origin.file_name
        is_there = is_prepared(target, origin, digest)
        return ExpertToPrepare(target, origin, blueprint, changes, placement, is_there)

    plans = [partial(plan, expert, loras) for loras in lora_sets for expert in EXPERTS]
    return list({each.target: each for each in collect_problems(plans)}.values())


def is_prepared(target: Path, origin: Origin, digest: Digest) -> bool:
    """Whether an expert of that origin is there, and is what was written."""
    try:
        manifest = read_manifest(target)
        check_content(target, manifest, digest)
    except (InputError, OSError):
        return False
    return not manifest.origin.difference(origin)


def check_space(folder: Path, experts: Iterable[ExpertToPrepare]) -> None:
    """Raises InputError where the experts that are missing do not fit on the disk."""
    missing = [sum(each.nbytes for each in one.parameters.values()) for one in experts if not one.there]
    free = free_space(folder)
    if missing and sum(missing) + SPARE > free:
        what = f"{len(missing)} experts need {sum(missing) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise InputError(Problem(f"{what}; free some, or name another folder with --to", file=str(folder)))


def prepare_expert(expert: ExpertToPrepare, digest: Digest, report: Reporter) -> None:
    """Write an expert, then its manifest. Needs memory for one tensor.

    Raises InputError for NaN or Inf in the sources, RenderError where the file cannot be written.
    """
    target, placement = expert.target, expert.placement
    header: dict[str, object] = {"__metadata__": {PREPARED: expert.origin.expert}}
    starts: dict[str, int] = {}
    end = 0
    for name, parameter in expert.parameters.items():
        starts[name], end = end, end + parameter.nbytes
        spans = [starts[name], end]
        header[name] = {"dtype": _stored_as(parameter), "shape": [*parameter.shape], "data_offsets": spans}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    left = {*starts}

    def take(name: str, entry: StoredTensor) -> Mapping[str, Tensor]:
        return placement.take_merged(name, entry, expert.recipes.get(name))

    with disk(target):
        make_folder(target.parent)
        remove_stale_temps(target.parent)
    with disk(manifest_file(target)):
        manifest_file(target).unlink(missing_ok=True)  # it describes what is replaced
    with atomic_file(target) as temporary, disk(target), temporary.open("r+b") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)

        def write(name: str, weight: Tensor) -> None:
            import torch

            file.seek(8 + len(raw) + starts[name])
            file.write(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            left.remove(name)

        sizes = {name: entry.nbytes for name, entry in expert.blueprint.entries.items()}
        progress = LoadingProgress(expert.origin.expert, sizes, report)
        read_weights(expert.blueprint.entries, take, write, progress)
        assert not left, f"not written: {sorted(left)}"
    packages = ("svi-story", "safetensors", "diffusers")
    manifest = PreparedManifest(
        origin=expert.origin,
        bytes=target.stat().st_size,
        sha256=digest(target),  # read back: what the disk has
        versions={package: version(package) for package in packages},
    )
    write_atomic(manifest_file(target), (manifest.model_dump_json(indent=1) + "\n").encode())


def _stored_as(parameter: Parameter) -> str:
    return STORED_AS[str(parameter.dtype).removeprefix("torch.")]
