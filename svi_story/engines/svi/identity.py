"""What SVI's frames depend on, found without loading weights and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.weights.catalogue import (
    EXPERTS,
    LoraPair,
    find_distill_pair,
    find_models,
    find_svi_pair,
)
from svi_story.engines.svi.weights.lora import check_distill, check_extra, check_svi_pair
from svi_story.enginespec.sampling import Lora
from svi_story.errors import InputError, Problem, collect_problems
from svi_story.files import sha256_file
from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from svi_story.engines import Digest
    from svi_story.engines.svi.weights.catalogue import Expert
    from svi_story.enginespec.sampling import Distill
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Segment

REVISION = 1
"""Increased whenever the same inputs give other frames than before."""


def extras_of(segment: Segment, root: Path) -> tuple[Lora, ...]:
    """The LoRAs of a segment besides the variant's own pair: the preset's distillation, then the board's.

    Raises InputError for a distillation pair that is missing, or whose names say that the two are swapped.
    """
    return (*distill_loras(segment.sampler.distill, root), *segment.loras)


def lora_sets_of(segment: Segment, root: Path) -> dict[Expert, str]:
    """The LoRAs of each expert for a segment, as a name. Raises InputError as above."""
    extras, variant = extras_of(segment, root), segment.sampler.variant
    return {
        expert: f"{variant} {[(str(lora.path), lora.strength(expert)) for lora in extras]}"
        for expert in EXPERTS
    }


def distill_loras(distill: Distill | None, root: Path) -> tuple[Lora, ...]:
    """A distillation pair as LoRAs, each for one expert. Raises InputError as `extras_of` does."""
    if distill is None:
        return ()
    pair = LoraPair(*distill.files) if distill.files else find_distill_pair(root)
    check_distill(pair)
    return (Lora(pair.high, distill.high, 0.0), Lora(pair.low, 0.0, distill.low))


def sha256_of(file: Path) -> str:
    """A file's sha256 in hex, read now. Raises InputError when it cannot be read."""
    try:
        return sha256_file(file)
    except (OSError, ValueError) as error:
        raise InputError(Problem(f"cannot be read: {error}", file=str(file))) from error


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
        """Increased whenever the same inputs give other frames than before."""
        return REVISION

    @cached_property
    def files(self) -> Mapping[str, tuple[Path, ...]]:
        """Every file of every model, by model. Raises InputError that lists all that is missing."""
        return find_models(self.root).by_model()

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
        collect_problems([lambda: self.files, lambda: self.notes(segment)])
        sampler = segment.sampler
        guidance = {"high": sampler.guidance.high, "low": sampler.guidance.low}
        guided = any(scale != 1 for scale in guidance.values())
        pair = find_svi_pair(self.root, sampler.variant)
        extras = [lora for lora in extras_of(segment, self.root) if lora.high or lora.low]
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
            "svi_loras": {expert: self.digest(pair.of(expert)) for expert in EXPERTS},
            "loras": [
                {"sha256": self.digest(lora.path), "high": lora.high, "low": lora.low} for lora in extras
            ],
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

        def pair_notes() -> list[str]:
            variant = segment.sampler.variant
            return check_svi_pair(variant, find_svi_pair(self.root, variant), self.digest)

        def extra_notes() -> list[str]:
            checks = [
                partial(check_extra, lora.path, tuple(e for e in EXPERTS if lora.strength(e)), self.digest)
                for lora in extras_of(segment, self.root)
            ]
            return [note for notes in collect_problems(checks) for note in notes]

        return tuple(note for notes in collect_problems([pair_notes, extra_notes]) for note in notes)
