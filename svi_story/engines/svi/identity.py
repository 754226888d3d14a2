"""What SVI's frames depend on, found without loading weights and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.layout import (
    EXPERTS,
    Pair,
    files_of,
    find_distill_pair,
    find_layout,
    find_svi_pair,
)
from svi_story.engines.svi.pairs import check_distill, check_extra, check_svi_pair
from svi_story.engines.svi.together import all_of
from svi_story.enginespec.sampling import Lora
from svi_story.errors import InputError, Problem
from svi_story.files import sha256_file
from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from svi_story.engines.svi.layout import Expert
    from svi_story.engines.svi.pairs import Digest
    from svi_story.enginespec.sampling import Distill, Variant
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Segment

REVISION = 1
"""Raised whenever the same inputs make other frames than before."""


def extras_of(segment: Segment, root: Path) -> tuple[Lora, ...]:
    """The LoRAs of a segment besides the variant's own pair: the preset's distillation, then the board's.

    Raises InputError for a distillation pair that is missing, or whose names say that the two are swapped.
    """
    return (*distill_loras(segment.sampler.distill, root), *segment.loras)


def outfits_of(segment: Segment, root: Path) -> dict[Expert, str]:
    """What each expert wears for a segment, as a name. Raises InputError as above."""
    extras, variant = extras_of(segment, root), segment.sampler.variant
    return {
        expert: f"{variant} {[(str(lora.path), lora.strength(expert)) for lora in extras]}"
        for expert in EXPERTS
    }


def distill_loras(distill: Distill | None, root: Path) -> tuple[Lora, ...]:
    """A distillation pair as LoRAs, each for one expert. Raises InputError as `extras_of` does."""
    if distill is None:
        return ()
    pair = Pair(*distill.files) if distill.files else find_distill_pair(root)
    check_distill(pair)
    return (Lora(pair.high, distill.high, 0.0), Lora(pair.low, 0.0, distill.low))


def sha256_of(file: Path) -> str:
    """A file's sha256 in hex, found once for each state of it. Raises InputError when it cannot be read."""
    try:
        stat = file.stat()
        return _sha256(file, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError) as error:
        raise InputError(Problem(f"cannot be read: {error}", file=str(file))) from error


@lru_cache(maxsize=1024)
def _sha256(file: Path, *_state: int) -> str:
    return sha256_file(file)


@dataclass(frozen=True)
class SviIdentity:
    """Name, revision and inputs. `digest` may remember hashes; a model's files are hashed once."""

    root: Path
    dtype: str
    digest: Digest = sha256_of
    vae: str = "whole"

    @property
    def name(self) -> str:
        """The engine's name in a board."""
        return "svi"

    @property
    def revision(self) -> int:
        """Raised whenever the same inputs make other frames than before."""
        return REVISION

    @cached_property
    def files(self) -> Mapping[str, tuple[Path, ...]]:
        """Every file of every model, by model. Raises InputError that lists all that is missing."""
        return files_of(find_layout(self.root))

    @cached_property
    def weights(self) -> Mapping[str, list[Json]]:
        """The sha256 of every file of every model. Raises InputError when one cannot be read."""
        return {name: self._hashes(name) for name in self.files}

    def text_key(self, prompt: str) -> str:
        """The content address of a cleaned prompt's embedding."""
        encoder, tokenizer = self._hashes("text_encoder"), self._hashes("tokenizer")
        return key_of({"prompt": prompt, "dtype": self.dtype, "encoder": encoder, "tokenizer": tokenizer})

    def _hashes(self, model: str) -> list[Json]:
        return [self.digest(file) for file in self.files[model]]

    def inputs(self, segment: Segment) -> Mapping[str, Json]:
        """All that a segment's frames depend on. Raises InputError for missing files and wrong places."""
        all_of([lambda: self.files, lambda: self.notes(segment)])
        sampler = segment.sampler
        guidance = {"high": sampler.guidance.high, "low": sampler.guidance.low}
        guided = any(scale != 1 for scale in guidance.values())
        return {
            "variant": sampler.variant,
            "steps": sampler.steps,
            "guidance": {**guidance},
            "shift": sampler.shift,
            "boundary": sampler.boundary,
            "motion_latents": sampler.motion_latents if sampler.variant == "2.0-pro" else None,
            "dtype": self.dtype,
            "vae": self.vae,
            "weights": {**self.weights},
            "svi_loras": self._pair(segment),
            "loras": self._extras(segment),
            "prompt": segment.prompt,
            "negative_prompt": segment.negative_prompt if guided else None,
            "seed": segment.seed,
            "width": segment.size.width,
            "height": segment.size.height,
            "frames": segment.frames,
            "anchor": segment.anchor.pixels,
        }

    def notes(self, segment: Segment) -> tuple[str, ...]:
        """What the user should know about a segment's LoRAs. Raises InputError for files in wrong places."""
        variant = segment.sampler.variant
        pair, extras = all_of([lambda: self._pair_notes(variant), lambda: self._extra_notes(segment)])
        return (*pair, *extras)

    def _pair_notes(self, variant: Variant) -> list[str]:
        return check_svi_pair(variant, find_svi_pair(self.root, variant), self.digest)

    def _extra_notes(self, segment: Segment) -> list[str]:
        checks = [partial(self._check_extra, lora) for lora in extras_of(segment, self.root)]
        return [note for notes in all_of(checks) for note in notes]

    def _check_extra(self, lora: Lora) -> list[str]:
        return check_extra(lora.path, tuple(e for e in EXPERTS if lora.strength(e)), self.digest)

    def _pair(self, segment: Segment) -> dict[str, Json]:
        variant = segment.sampler.variant
        pair = find_svi_pair(self.root, variant)
        return {expert: self.digest(pair.of(expert)) for expert in EXPERTS}

    def _extras(self, segment: Segment) -> list[Json]:
        used = [lora for lora in extras_of(segment, self.root) if lora.high or lora.low]
        return [{"sha256": self.digest(lora.path), "high": lora.high, "low": lora.low} for lora in used]
