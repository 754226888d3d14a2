"""Where the weights lie under a models folder: upstream's layout or diffusers'. Opens no weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from svi_story.engines.svi.digests import LARGEST
from svi_story.engines.svi.together import all_of
from svi_story.errors import InputError, Problem
from svi_story.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from svi_story.enginespec.sampling import Variant

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
    "tokenizer": _Wanted(
        "the tokenizer",
        TOKENIZER_REPO,
        (
            f"{TOKENIZER_REPO}/google/umt5-xxl/tokenizer.json",
            f"{EXPERT_REPO}/google/umt5-xxl/tokenizer.json",
            *(f"{place}tokenizer/tokenizer.json" for place in DIFFUSERS_PLACES),
        ),
    ),
}
_SVI_PLACES = ("Stable-Video-Infinity/version-2.0", f"{SVI_REPO}/version-2.0")
_DISTILL_PLACE = f"{DISTILL_REPO}/Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1"


def find_layout(root: Path) -> Layout:
    """Every model's files under a models folder. Raises InputError that lists all that is missing."""
    found = all_of([partial(_find, root, wanted) for wanted in _WANTED.values()])
    models = dict(zip(_WANTED, found, strict=True))
    tokenizer = models.pop("tokenizer").weights[0]
    return Layout(**models, tokenizer=tokenizer)


def find_model(root: Path, name: str) -> ModelFiles:
    """One model's files: "high", "low", "vae", "text_encoder" or "tokenizer". Raises InputError."""
    return _find(root, _WANTED[name])


def find_svi_pair(root: Path, variant: Variant) -> Pair:
    """The variant's own LoRA pair. Raises InputError that names each missing file."""
    suffix = {"2.0": "", "2.0-pro": "_pro"}[variant]
    name = f"SVI_Wan2.2-I2V-A14B_{{}}_noise_lora_v2.0{suffix}.safetensors"
    places = tuple(f"{place}/{name}" for place in _SVI_PLACES)
    return _find_pair(root, _Wanted(f"the SVI {variant} LoRA of the {{}}-noise expert", SVI_REPO, places))


def find_distill_pair(root: Path) -> Pair:
    """The LightX2V pair of the fast presets. Raises InputError that names each missing file."""
    places = (f"{_DISTILL_PLACE}/{{}}_noise_model.safetensors",)
    return _find_pair(root, _Wanted("the LightX2V LoRA of the {}-noise expert", DISTILL_REPO, places))


def files_of(layout: Layout) -> dict[str, tuple[Path, ...]]:
    """Every file whose content decides what the models compute, by model."""
    models = {name: getattr(layout, name) for name in _WANTED if name != "tokenizer"}
    files = {
        name: (*model.weights, *((model.config,) if model.config else ())) for name, model in models.items()
    }
    return {**files, "tokenizer": (layout.tokenizer,)}


def _find_pair(root: Path, wanted: _Wanted) -> Pair:
    """A pair whose names have {} where the expert stands."""

    def of(expert: Expert) -> Path:
        places = tuple(place.format(expert) for place in wanted.places)
        return _find(root, _Wanted(wanted.what.format(expert), wanted.source, places)).weights[0]

    return Pair(*all_of([partial(of, expert) for expert in EXPERTS]))


def _find(root: Path, wanted: _Wanted) -> ModelFiles:
    """The first place that holds what is wanted: a file, or a folder with weights."""
    for place in (root / name for name in wanted.places):
        if place.is_file():
            return ModelFiles((place,), None)
        if place.is_dir():
            weights = tuple(_weights_in(place, wanted))
            config = place / "config.json"
            if weights:
                return ModelFiles(weights, config if config.is_file() else None)
    what = f"not found: {wanted.what}; download {wanted.source}, or name another folder with --models"
    raise InputError(Problem(f"{what} ({PREVIEW})", file=str(root / wanted.places[0])))


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
        names = sorted(set(json.loads(read_regular(index, LARGEST))["weight_map"].values()))
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
