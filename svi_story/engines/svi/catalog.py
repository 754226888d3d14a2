"""What each variant needs from the Hugging Face hub, and where it lies under the models folder."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from svi_story.engines.svi.layout import CONVERTED_REPO, DISTILL_REPO, EXPERT_REPO, SVI_REPO, TOKENIZER_REPO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svi_story.enginespec.sampling import Variant

    PartName = Literal["high", "low", "vae", "text_encoder", "tokenizer", "svi-2.0", "svi-2.0-pro", "distill"]

VARIANTS: tuple[Variant, ...] = ("2.0", "2.0-pro")
DISTILLED = ("fast", "draft")
"""The presets that use the LightX2V pair."""
UNKNOWN = "see the repository"


@dataclass(frozen=True)
class Source:
    """A repository on the hub and its place under the models folder, as upstream lays it out."""

    repo: str
    folder: str
    licence: str
    """As far as it is known here; a download asks the hub and tells what the hub says."""


@dataclass(frozen=True)
class Part:
    """One thing the engine needs: the files of a repository that match these patterns."""

    name: PartName
    what: str
    source: Source
    needed: tuple[str, ...]
    """Each must match a file of the repository."""
    besides: tuple[str, ...] = ()
    """Taken where they exist: small, and part of upstream's layout."""

    def unmet(self, names: Iterable[str]) -> tuple[str, ...]:
        """The needed patterns that none of these names match."""
        return tuple(p for p in self.needed if not any(fnmatchcase(name, p) for name in names))

    def takes(self, name: str) -> bool:
        """Whether a file of the repository belongs to this part. A name that leads elsewhere never does."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            return False
        return any(fnmatchcase(name, pattern) for pattern in (*self.needed, *self.besides))


# Wan's licence is in its repositories, SVI's on its model card and in the authors' repository.
WAN = Source(EXPERT_REPO, EXPERT_REPO, "Apache-2.0")
WAN_TEXT = Source(TOKENIZER_REPO, TOKENIZER_REPO, "Apache-2.0")
CONVERTED = Source(CONVERTED_REPO, CONVERTED_REPO, UNKNOWN)
SVI = Source(SVI_REPO, "Stable-Video-Infinity", "MIT")
DISTILL = Source(DISTILL_REPO, DISTILL_REPO, UNKNOWN)

_TOKENIZER = "google/umt5-xxl"
_DISTILL = "Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1"
_SVI_LORA = "version-2.0/SVI_Wan2.2-I2V-A14B_{}_noise_lora_v2.0{}.safetensors"


def _expert(name: Literal["high", "low"]) -> Part:
    folder = f"{name}_noise_model"
    needed = (f"{folder}/*.safetensors", f"{folder}/*.safetensors.index.json")
    return Part(name, f"{name}-noise expert", WAN, needed, (f"{folder}/config.json",))


def _svi_pair(name: Literal["svi-2.0", "svi-2.0-pro"], suffix: str) -> Part:
    needed = tuple(_SVI_LORA.format(expert, suffix) for expert in ("high", "low"))
    return Part(name, f"{name.replace('svi-', 'SVI ')} LoRA pair", SVI, needed)


PARTS = (
    _expert("high"),
    _expert("low"),
    Part("vae", "VAE", CONVERTED, ("Wan2.1_VAE.safetensors",)),
    Part("text_encoder", "text encoder", CONVERTED, ("models_t5_umt5-xxl-enc-bf16.safetensors",)),
    Part(
        "tokenizer",
        "tokenizer",
        WAN_TEXT,
        (f"{_TOKENIZER}/tokenizer.json",),
        tuple(
            f"{_TOKENIZER}/{name}"
            for name in ("special_tokens_map.json", "spiece.model", "tokenizer_config.json")
        ),
    ),
    _svi_pair("svi-2.0", ""),
    _svi_pair("svi-2.0-pro", "_pro"),
    Part(
        "distill",
        "LightX2V LoRA pair",
        DISTILL,
        tuple(f"{_DISTILL}/{expert}_noise_model.safetensors" for expert in ("high", "low")),
    ),
)
BASE: tuple[PartName, ...] = ("high", "low", "vae", "text_encoder", "tokenizer")
"""What every variant needs."""


def parts_for(variant: Variant, preset: str = "quality") -> tuple[Part, ...]:
    """What a variant needs with a preset, and nothing else."""
    wanted = {*BASE, f"svi-{variant}", *(("distill",) if preset in DISTILLED else ())}
    return tuple(part for part in PARTS if part.name in wanted)
