"""The weights that the engine needs: what they are for, and where the hub has them."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from svi_story.engines.svi.weights.candidates import EXPERTS, INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from svi_story.engines.svi.weights.candidates import Expert
    from svi_story.enginespec.sampling import Variant

    PartName = Literal["high", "low", "vae", "text_encoder", "tokenizer", "svi-2.0", "svi-2.0-pro", "distill"]

VARIANTS: tuple[Variant, ...] = ("2.0", "2.0-pro")
DISTILLED = ("fast", "draft")
"""The presets that use the LightX2V pair."""
UNKNOWN = "see the repository"


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
    besides: tuple[str, ...] = ()
    """Patterns of files that are downloaded where they exist: small, and part of upstream's layout."""

    def unmet(self, names: Iterable[str]) -> tuple[str, ...]:
        """The needed patterns that none of these names match."""
        return tuple(p for p in self.needed if not any(fnmatchcase(name, p) for name in names))

    def takes(self, name: str) -> bool:
        """Whether a file of the repository belongs to this part. A name that leads elsewhere never does."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            return False
        return any(fnmatchcase(name, pattern) for pattern in (*self.needed, *self.besides))


def _expert(expert: Expert) -> WeightPart:
    folder = f"{expert}_noise_model"
    return WeightPart(
        expert,
        f"{expert}-noise expert",
        WAN,
        needed=(f"{folder}/*.safetensors", f"{folder}/*{INDEX}"),
        besides=(f"{folder}/config.json",),
    )


def _converted(name: Literal["vae", "text_encoder"], what: str, file: str) -> WeightPart:
    return WeightPart(name, what, CONVERTED, needed=(file,))


def _svi_pair(variant: Variant, suffix: str) -> WeightPart:
    file = f"version-2.0/SVI_Wan2.2-I2V-A14B_{{}}_noise_lora_v2.0{suffix}.safetensors"
    return WeightPart(
        "svi-2.0" if variant == "2.0" else "svi-2.0-pro",
        f"SVI {variant} LoRA pair",
        SVI,
        needed=tuple(file.format(expert) for expert in EXPERTS),
    )


_TOKENIZER = "google/umt5-xxl"
_LIGHTX2V = "Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1/{}_noise_model.safetensors"
PARTS = (
    _expert("high"),
    _expert("low"),
    _converted("vae", "VAE", "Wan2.1_VAE.safetensors"),
    _converted("text_encoder", "text encoder", "models_t5_umt5-xxl-enc-bf16.safetensors"),
    WeightPart(
        "tokenizer",
        "tokenizer",
        WAN_TEXT,
        needed=(f"{_TOKENIZER}/tokenizer.json",),
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
    ),
)
BASE: tuple[PartName, ...] = ("high", "low", "vae", "text_encoder", "tokenizer")
"""What every variant needs."""


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
