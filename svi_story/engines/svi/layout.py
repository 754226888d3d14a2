"""Where the weights lie under a models folder: upstream's layout or diffusers'. Opens no weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svi_story.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from svi_story.plan.model import Variant

Expert = Literal["high", "low"]
EXPERTS: tuple[Expert, Expert] = ("high", "low")

EXPERT_REPO = "Wan-AI/Wan2.2-I2V-A14B"
CONVERTED_REPO = "DiffSynth-Studio/Wan-Series-Converted-Safetensors"
TOKENIZER_REPO = "Wan-AI/Wan2.1-T2V-1.3B"
SVI_REPO = "vita-video-gen/svi-model"
DISTILL_REPO = "lightx2v/Wan2.2-Lightning"
DIFFUSERS_PLACES = ("", f"{EXPERT_REPO}-Diffusers/")
"""Where a diffusers pipeline folder may lie: the models folder itself, or its repository's name in it."""

INDEX = ".safetensors.index.json"
PREVIEW = "a preview without weights: --engine animatic"


@dataclass(frozen=True)
class ModelFiles:
    """One model's files."""

    weights: tuple[Path, ...]
    """One file, or all its shards."""
    config: Path | None
    """Its config.json, where there is one."""


@dataclass(frozen=True)
class Pair:
    """Two LoRA files that belong together, one for each expert."""

    high: Path
    low: Path

    def of(self, expert: Expert) -> Path:
        """The file for one expert."""
        return self.high if expert == "high" else self.low


@dataclass(frozen=True)
class Layout:
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


@dataclass(frozen=True)
class _Wanted:
    """One thing to find: what it is, where it comes from, and its places in order of preference."""

    what: str
    source: str
    places: tuple[str, ...]


_WANTED = {
    "high": _Wanted(
        "the high-noise expert",
        EXPERT_REPO,
        (f"{EXPERT_REPO}/high_noise_model", *(f"{place}transformer" for place in DIFFUSERS_PLACES)),
    ),
    "low": _Wanted(
        "the low-noise expert",
        EXPERT_REPO,
        (f"{EXPERT_REPO}/low_noise_model", *(f"{place}transformer_2" for place in DIFFUSERS_PLACES)),
    ),
    "vae": _Wanted(
        "the VAE",
        CONVERTED_REPO,
        (f"{CONVERTED_REPO}/Wan2.1_VAE.safetensors", *(f"{place}vae" for place in DIFFUSERS_PLACES)),
    ),
    "text_encoder": _Wanted(
        "the text encoder",
        CONVERTED_REPO,
        (
            f"{CONVERTED_REPO}/models_t5_umt5-xxl-enc-bf16.safetensors",
            *(f"{place}text_encoder" for place in DIFFUSERS_PLACES),
        ),
    ),
}
_TOKENIZER = _Wanted(
    "the tokenizer",
    TOKENIZER_REPO,
    (
        f"{TOKENIZER_REPO}/google/umt5-xxl/tokenizer.json",
        f"{EXPERT_REPO}/google/umt5-xxl/tokenizer.json",
        *(f"{place}tokenizer/tokenizer.json" for place in DIFFUSERS_PLACES),
    ),
)
_SVI_PLACES = ("Stable-Video-Infinity/version-2.0", f"{SVI_REPO}/version-2.0")
_DISTILL_PLACE = f"{DISTILL_REPO}/Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1"


def find_layout(root: Path) -> Layout:
    """Every model's files under a models folder. Raises InputError that lists all that is missing."""
    problems: list[Problem] = []
    found: dict[str, ModelFiles] = {}
    for name, wanted in _WANTED.items():
        try:
            found[name] = _find_model(root, wanted)
        except InputError as error:
            problems += error.problems
    tokenizer = _first_file(root, _TOKENIZER.places)
    if tokenizer is None:
        problems.append(_missing(root, _TOKENIZER))
    if problems or tokenizer is None:
        raise InputError(*problems)
    return Layout(**found, tokenizer=tokenizer)


def find_svi_pair(root: Path, variant: Variant) -> Pair:
    """The variant's own LoRA pair. Raises InputError that names each missing file."""
    suffix = {"2.0": "", "2.0-pro": "_pro"}[variant]
    names = {e: f"SVI_Wan2.2-I2V-A14B_{e}_noise_lora_v2.0{suffix}.safetensors" for e in EXPERTS}
    return _find_pair(root, f"SVI {variant} LoRA", SVI_REPO, _SVI_PLACES, names)


def find_distill_pair(root: Path) -> Pair:
    """The LightX2V pair of the fast presets. Raises InputError that names each missing file."""
    names = {e: f"{e}_noise_model.safetensors" for e in EXPERTS}
    return _find_pair(root, "LightX2V LoRA", DISTILL_REPO, (_DISTILL_PLACE,), names)


def files_of(layout: Layout) -> dict[str, tuple[Path, ...]]:
    """Every file whose content decides what the models compute, by model."""
    models = {name: getattr(layout, name) for name in _WANTED}
    files = {
        name: (*model.weights, *((model.config,) if model.config else ())) for name, model in models.items()
    }
    return {**files, "tokenizer": (layout.tokenizer,)}


def _find_pair(root: Path, what: str, source: str, places: Sequence[str], names: dict[Expert, str]) -> Pair:
    found = {e: _first_file(root, [f"{place}/{names[e]}" for place in places]) for e in EXPERTS}
    problems = [
        _missing(root, _Wanted(f"the {what} of the {e}-noise expert", source, (f"{places[0]}/{names[e]}",)))
        for e in EXPERTS
        if found[e] is None
    ]
    high, low = found["high"], found["low"]
    if high is None or low is None:
        raise InputError(*problems)
    return Pair(high, low)


def _first_file(root: Path, places: Sequence[str]) -> Path | None:
    return next((root / place for place in places if (root / place).is_file()), None)


def _find_model(root: Path, wanted: _Wanted) -> ModelFiles:
    for place in (root / name for name in wanted.places):
        if place.is_file():
            return ModelFiles((place,), None)
        if place.is_dir():
            weights = tuple(_weights_in(place, wanted))
            config = place / "config.json"
            if weights:
                return ModelFiles(weights, config if config.is_file() else None)
    raise InputError(_missing(root, wanted))


def _weights_in(folder: Path, wanted: _Wanted) -> list[Path]:
    """A folder's weight files: those its index names, else all there are; every shard must be there."""
    indexes = sorted(folder.glob(f"*{INDEX}"))
    if len(indexes) > 1:
        what = f"{len(indexes)} index files ({', '.join(i.name for i in indexes)}); keep one"
        raise InputError(Problem(what, file=str(folder)))
    names = _indexed(indexes[0]) if indexes else sorted(p.name for p in folder.glob("*.safetensors"))
    missing = [
        Problem(
            f"not found: a part of {wanted.what}; download {wanted.source} again", file=str(folder / name)
        )
        for name in sorted({*names, *(n for name in names for n in _siblings(name))})
        if not (folder / name).is_file()
    ]
    if missing:
        raise InputError(*missing)
    return [folder / name for name in names]


def _indexed(index: Path) -> list[str]:
    """The shards that an index names. Raises InputError when it is none, or names files elsewhere."""
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(Problem("not an index of shards; download it again", file=str(index))) from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise InputError(Problem(f"names {name!r}, which is no shard beside it", file=str(index)))
    return names


def _siblings(name: str) -> Iterator[str]:
    """All the names of a sharded file's shards, from one of them: `x-00002-of-00006.safetensors`."""
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", name)
    count = int(match[3]) if match else 0
    for number in range(1, min(count, 999) + 1):
        yield f"{match[1]}-{number:05}-of-{match[3]}.safetensors" if match else name


def _missing(root: Path, wanted: _Wanted) -> Problem:
    what = f"not found: {wanted.what}; download {wanted.source}, or name another folder with --models"
    return Problem(f"{what} ({PREVIEW})", file=str(root / wanted.places[0]))
