"""The weight files: what the engine needs, where the hub has it, where it lies under a models folder.

A models folder may have upstream's layout or that of diffusers' pipelines. Only headers are read. Needs no
torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from svi_story.engines.svi.weights.formats import SUFFIXES, read_weights
from svi_story.engines.svi.weights.tensors import MAX_FILE
from svi_story.errors import InputError, Problem, collect_problems, shorten_problems
from svi_story.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from svi_story.enginespec.sampling import Variant

    PartName = Literal["high", "low", "vae", "text_encoder", "tokenizer", "svi-2.0", "svi-2.0-pro", "distill"]

Expert = Literal["high", "low"]
EXPERTS: tuple[Expert, Expert] = ("high", "low")
VARIANTS: tuple[Variant, ...] = ("2.0", "2.0-pro")
DISTILLED = ("fast", "draft")
"""The presets that use the LightX2V pair."""
UNKNOWN = "see the repository"
INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Repository:
    """A repository on the hub and its folder under the models folder, as upstream lays it out."""

    repo: str
    folder: str
    licence: str
    """As far as it is known here; a download shows what the hub states."""


# Wan's licence is in its repositories, SVI's on its model card and in the authors' repository.
WAN = Repository("Wan-AI/Wan2.2-I2V-A14B", "Wan-AI/Wan2.2-I2V-A14B", "Apache-2.0")
WAN_TEXT = Repository("Wan-AI/Wan2.1-T2V-1.3B", "Wan-AI/Wan2.1-T2V-1.3B", "Apache-2.0")
_CONVERTED = "DiffSynth-Studio/Wan-Series-Converted-Safetensors"
CONVERTED = Repository(_CONVERTED, _CONVERTED, UNKNOWN)
SVI = Repository("vita-video-gen/svi-model", "Stable-Video-Infinity", "MIT")
DISTILL = Repository("lightx2v/Wan2.2-Lightning", "lightx2v/Wan2.2-Lightning", UNKNOWN)


@dataclass(frozen=True)
class WeightPart:
    """One thing the engine needs: a model, the tokenizer, or a pair of LoRAs."""

    name: PartName
    what: str
    source: Repository
    needed: tuple[str, ...]
    """Patterns, each of which must match a file of the repository."""
    places: tuple[str, ...]
    """Where the engine looks under the models folder, in order of preference: files, or folders with weights.
    In a pair's, {} stands for the expert."""
    besides: tuple[str, ...] = ()
    """Patterns of files that are downloaded where they exist: small, and part of upstream's layout."""

    @property
    def is_pair(self) -> bool:
        """Whether it is two LoRA files, one for each expert."""
        return "{}" in self.places[0]

    def unmet(self, names: Iterable[str]) -> tuple[str, ...]:
        """The needed patterns that none of these names match."""
        return tuple(p for p in self.needed if not any(fnmatchcase(name, p) for name in names))

    def takes(self, name: str) -> bool:
        """Whether a file of the repository belongs to this part. A name that leads elsewhere never does."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            return False
        return any(fnmatchcase(name, pattern) for pattern in (*self.needed, *self.besides))


def _in_pipeline(name: str) -> tuple[str, str]:
    """A place in a diffusers pipeline folder: the models folder itself, or its repository's name in it."""
    return name, f"{WAN.folder}-Diffusers/{name}"


def _expert(expert: Expert, pipeline_folder: str) -> WeightPart:
    folder = f"{expert}_noise_model"
    return WeightPart(
        expert,
        f"{expert}-noise expert",
        WAN,
        needed=(f"{folder}/*.safetensors", f"{folder}/*{INDEX}"),
        places=(f"{WAN.folder}/{folder}", *_in_pipeline(pipeline_folder)),
        besides=(f"{folder}/config.json",),
    )


def _converted(name: Literal["vae", "text_encoder"], what: str, file: str) -> WeightPart:
    places = (f"{CONVERTED.folder}/{file}", *_in_pipeline(name))
    return WeightPart(name, what, CONVERTED, needed=(file,), places=places)


def _svi_pair(variant: Variant, suffix: str) -> WeightPart:
    file = f"version-2.0/SVI_Wan2.2-I2V-A14B_{{}}_noise_lora_v2.0{suffix}.safetensors"
    return WeightPart(
        "svi-2.0" if variant == "2.0" else "svi-2.0-pro",
        f"SVI {variant} LoRA pair",
        SVI,
        needed=tuple(file.format(expert) for expert in EXPERTS),
        places=(f"{SVI.folder}/{file}", f"{SVI.repo}/{file}"),
    )


_TOKENIZER = "google/umt5-xxl"
_LIGHTX2V = "Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1/{}_noise_model.safetensors"
PARTS = (
    _expert("high", "transformer"),
    _expert("low", "transformer_2"),
    _converted("vae", "VAE", "Wan2.1_VAE.safetensors"),
    _converted("text_encoder", "text encoder", "models_t5_umt5-xxl-enc-bf16.safetensors"),
    WeightPart(
        "tokenizer",
        "tokenizer",
        WAN_TEXT,
        needed=(f"{_TOKENIZER}/tokenizer.json",),
        places=(
            f"{WAN_TEXT.folder}/{_TOKENIZER}/tokenizer.json",
            f"{WAN.folder}/{_TOKENIZER}/tokenizer.json",
            *_in_pipeline("tokenizer/tokenizer.json"),
        ),
        besides=tuple(
            f"{_TOKENIZER}/{name}"
            for name in ("special_tokens_map.json", "spiece.model", "tokenizer_config.json")
        ),
    ),
    _svi_pair("2.0", ""),
    _svi_pair("2.0-pro", "_pro"),
    WeightPart(
        "distill",
        "LightX2V LoRA pair",
        DISTILL,
        needed=tuple(_LIGHTX2V.format(expert) for expert in EXPERTS),
        places=(f"{DISTILL.folder}/{_LIGHTX2V}",),
    ),
)
BASE: tuple[PartName, ...] = ("high", "low", "vae", "text_encoder", "tokenizer")
"""What every variant needs."""
_BY_NAME: dict[str, WeightPart] = {part.name: part for part in PARTS}


def parts_for(variant: Variant, preset: str = "quality") -> tuple[WeightPart, ...]:
    """What a variant needs with a preset, and nothing else."""
    wanted = {*BASE, f"svi-{variant}", *(("distill",) if preset in DISTILLED else ())}
    return tuple(part for part in PARTS if part.name in wanted)


@dataclass(frozen=True)
class ModelFiles:
    """One model's files."""

    weights: tuple[Path, ...]
    """One file, or all its shards."""
    config: Path | None
    """Its config.json, where there is one."""

    @property
    def all(self) -> tuple[Path, ...]:
        """The weights, then the config."""
        return (*self.weights, *((self.config,) if self.config else ()))


@dataclass(frozen=True)
class LoraPair:
    """Two LoRA files that belong together, one for each expert."""

    high: Path
    low: Path

    def of(self, expert: Expert) -> Path:
        """The file for one expert."""
        return self.high if expert == "high" else self.low


@dataclass(frozen=True)
class ModelPaths:
    """Every file that the engine reads, besides LoRAs."""

    high: ModelFiles
    low: ModelFiles
    vae: ModelFiles
    text_encoder: ModelFiles
    tokenizer: Path
    """tokenizer.json."""

    def expert(self, expert: Expert) -> ModelFiles:
        """One expert's files."""
        return self.high if expert == "high" else self.low

    def by_model(self) -> dict[str, tuple[Path, ...]]:
        """Every file whose content decides what the models compute, by model."""
        return {
            "high": self.high.all,
            "low": self.low.all,
            "vae": self.vae.all,
            "text_encoder": self.text_encoder.all,
            "tokenizer": (self.tokenizer,),
        }


def find_models(root: Path) -> ModelPaths:
    """Every model's files under a models folder. Raises InputError that lists all that is missing."""
    found = collect_problems([partial(find_model, root, name) for name in BASE])
    high, low, vae, text_encoder, tokenizer = found
    return ModelPaths(high, low, vae, text_encoder, tokenizer.weights[0])


def find_model(root: Path, name: str) -> ModelFiles:
    """The files of one of BASE: the first place that holds it. Raises InputError."""
    part = _BY_NAME[name]
    return _find(root, part, f"the {part.what}", part.places)


def find_svi_pair(root: Path, variant: Variant) -> LoraPair:
    """The variant's own LoRA pair. Raises InputError that names each missing file."""
    return _find_pair(root, _BY_NAME[f"svi-{variant}"])


def find_distill_pair(root: Path) -> LoraPair:
    """The LightX2V pair of the fast presets. Raises InputError that names each missing file."""
    return _find_pair(root, _BY_NAME["distill"])


def _find_pair(root: Path, part: WeightPart) -> LoraPair:
    def find(expert: Expert) -> Path:
        what = f"the {part.what.removesuffix(' pair')} of the {expert}-noise expert"
        return _find(root, part, what, [place.format(expert) for place in part.places]).weights[0]

    return LoraPair(*collect_problems([partial(find, expert) for expert in EXPERTS]))


def _find(root: Path, part: WeightPart, what: str, places: Sequence[str]) -> ModelFiles:
    """The first place that holds a part: a file, or a folder with weights."""
    for place in (root / name for name in places):
        if place.is_file():
            return ModelFiles((place,), None)
        if place.is_dir():
            weights = tuple(_weights_in(place, part, what))
            config = place / "config.json"
            if weights:
                return ModelFiles(weights, config if config.is_file() else None)
    remedy = f"download {part.source.repo}, or name another folder with --models"
    preview = "a preview without weights: --engine animatic"
    raise InputError(Problem(f"not found: {what}; {remedy} ({preview})", file=str(root / places[0])))


def _weights_in(folder: Path, part: WeightPart, what: str) -> list[Path]:
    """A folder's weight files: those its index names, else all. Raises InputError for a missing shard."""
    indexes = sorted(folder.glob(f"*{INDEX}"))
    if len(indexes) > 1:
        problem = f"{len(indexes)} index files ({', '.join(i.name for i in indexes)}); keep one"
        raise InputError(Problem(problem, file=str(folder)))
    names = (
        _indexed(indexes[0])
        if indexes
        else sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES and p.name[0] != ".")
    )
    missing = [
        Problem(f"not found: a part of {what}; download {part.source.repo} again", file=str(folder / name))
        for name in sorted({*names, *(n for name in names for n in _shard_names(name))})
        if not (folder / name).is_file()
    ]
    if missing:
        raise InputError(*missing)
    return [folder / name for name in names]


def _is_weights(file: Path) -> bool:
    return file.suffix in SUFFIXES and not file.name.startswith(".")


def _indexed(index: Path) -> list[str]:
    """The shards that an index names. Raises InputError when it is none, or names files elsewhere."""
    try:
        names = sorted(set(json.loads(read_regular(index, MAX_FILE))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(Problem("not an index of shards; download it again", file=str(index))) from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise InputError(Problem(f"names {name!r}, which is no shard beside it", file=str(index)))
    return names


def _shard_names(name: str) -> Iterator[str]:
    """All the names of a sharded file's shards, from one of them: `x-00002-of-00006.safetensors`."""
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", name)
    count = int(match[3]) if match else 0
    for number in range(1, min(count, 999) + 1):
        yield f"{match[1]}-{number:05}-of-{match[3]}.safetensors" if match else name


@dataclass(frozen=True)
class PartStatus:
    """One part as it lies on the disk, judged by names, sizes and headers."""

    part: WeightPart
    files: tuple[Path, ...]
    """What the engine would read; empty where something is missing."""
    bytes: int
    """The size of all its files that exist."""
    problems: tuple[Problem, ...]

    @property
    def state(self) -> str:
        """ready, missing, incomplete or broken."""
        if not self.problems:
            return "ready"
        return "broken" if self.files else "incomplete" if self.bytes else "missing"


def list_parts(root: Path) -> tuple[PartStatus, ...]:
    """Every part that any variant or preset may need. Reads headers, no weights."""
    return tuple(_part_status(root, part) for part in PARTS)


def problems_of(
    parts: Sequence[PartStatus], variant: Variant, preset: str = "quality"
) -> tuple[Problem, ...]:
    """What keeps a variant from being rendered with a preset; empty when nothing does."""
    wanted = parts_for(variant, preset)
    return tuple(problem for status in parts if status.part in wanted for problem in status.problems)


def _part_status(root: Path, part: WeightPart) -> PartStatus:
    try:
        if part.is_pair:
            pair = _find_pair(root, part)
            files: tuple[Path, ...] = (pair.high, pair.low)
        else:
            files = find_model(root, part.name).all
    except InputError as error:
        folder = root / part.source.folder
        present = [file for each in (*part.needed, *part.besides) for file in sorted(folder.glob(each))]
        return PartStatus(part, (), sum(file.stat().st_size for file in present), error.problems)
    problems: list[Problem] = []
    for file in files:
        if file.suffix in SUFFIXES:
            try:
                read_weights(file)
            except InputError as error:
                problems += error.problems
    size = sum(file.stat().st_size for file in files)
    return PartStatus(part, files, size, tuple(shorten_problems(problems)))
