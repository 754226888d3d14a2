"""What SVI's frames depend on, found without loading weights and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.weights.candidates import EXPERTS
from svi_story.engines.svi.weights.catalogue import LoraPair
from svi_story.engines.svi.weights.locate import BASE, DISTILL, SVI, find_weights
from svi_story.engines.svi.weights.lora import LoraUse, check_distill, check_extra, check_svi_pair
from svi_story.enginespec.sampling import Lora
from svi_story.errors import InputError, Problem, collect_problems
from svi_story.files import sha256_file
from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from svi_story.engines import Digest
    from svi_story.engines.svi.weights.candidates import Expert
    from svi_story.engines.svi.weights.locate import ModelFolders, Weights
    from svi_story.enginespec.sampling import Distill, Variant
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Segment

REVISION = 1
"""Increased whenever the same inputs give other frames than before."""


def extras_of(
    distill: Distill | None, loras: tuple[Lora, ...], weights: Callable[[], Weights]
) -> tuple[Lora, ...]:
    """The LoRAs of a segment besides the variant's own pair: the preset's distillation, then the board's.

    Raises InputError for a distillation pair that is missing, or whose names say that the two are swapped.
    """
    if distill is None:
        return loras
    pair = LoraPair(*distill.files) if distill.files else weights().pair(DISTILL)
    check_distill(pair)
    return (Lora(pair.high, distill.high, 0.0), Lora(pair.low, 0.0, distill.low), *loras)


def lora_uses(
    variant: Variant, distill: Distill | None, loras: tuple[Lora, ...], weights: Weights
) -> dict[Expert, list[LoraUse]]:
    """Which LoRAs each expert gets: the variant's own pair, then the extra ones in the board's order.

    Raises InputError for missing LoRAs, and as `extras_of`.
    """
    pair, extras = weights.pair(SVI[variant]), extras_of(distill, loras, lambda: weights)
    return {
        expert: [
            LoraUse(pair.of(expert), 1.0, whole=True),
            *(LoraUse(lora.path, lora.strength(expert)) for lora in extras),
        ]
        for expert in EXPERTS
    }


def lora_sets_of(segment: Segment, weights: Callable[[], Weights]) -> dict[Expert, str]:
    """The LoRAs of each expert for a segment, as a name. Raises InputError as above."""
    sampler = segment.sampler
    extras, variant = extras_of(sampler.distill, segment.loras, weights), sampler.variant
    return {
        expert: f"{variant} {[(str(lora.path), lora.strength(expert)) for lora in extras]}"
        for expert in EXPERTS
    }


def sha256_of(file: Path) -> str:
    """A file's sha256 in hex, read now. Raises InputError when it cannot be read."""
    try:
        return sha256_file(file)
    except (OSError, ValueError) as error:
        raise InputError(Problem(f"cannot be read: {error}", file=str(file))) from error


@dataclass(frozen=True)
class SviIdentity:
    """Name, revision and inputs. `digest` may remember hashes; a model's files are hashed once."""

    where: ModelFolders
    dtype: str
    digest: Digest = sha256_of
    vae: str = "whole"
    precision: str = "bf16"
    """How the experts are held in memory: bf16, which stands for their dtype, or int8."""

    @property
    def name(self) -> str:
        """The engine's name in a board."""
        return "svi"

    @property
    def revision(self) -> int:
        """Increased whenever the same inputs give other frames than before."""
        return REVISION

    @cached_property
    def found(self) -> Weights:
        """The weights in the models folders. Raises InputError for folders that cannot be read."""
        return find_weights(self.where, self.digest)

    @cached_property
    def files(self) -> Mapping[str, tuple[Path, ...]]:
        """Every file of every model, by model. Raises InputError that lists all that is missing."""
        return self.found.models().by_model()

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
        checks: list[Callable[[], object]] = [lambda: self._require_all(segment)]
        collect_problems([*checks, lambda: self.notes(segment)])
        sampler = segment.sampler
        guidance = {"high": sampler.guidance.high, "low": sampler.guidance.low}
        guided = any(scale != 1 for scale in guidance.values())
        pair = self.svi_pair(segment)
        extras = [lora for lora in self.extras(segment) if lora.high or lora.low]
        return {
            "variant": sampler.variant,
            "steps": sampler.steps,
            "guidance": {**guidance},
            "shift": sampler.shift,
            "boundary": sampler.boundary,
            "motion_latents": sampler.motion_latents if sampler.variant == "2.0-pro" else None,
            "dtype": self.dtype,
            **({} if self.precision == "bf16" else {"precision": self.precision}),
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

    def svi_pair(self, segment: Segment) -> LoraPair:
        """The variant's own LoRAs. Raises InputError when they are missing."""
        return self.found.pair(SVI[segment.sampler.variant])

    def extras(self, segment: Segment) -> tuple[Lora, ...]:
        """The other LoRAs of a segment, as `extras_of`."""
        return extras_of(segment.sampler.distill, segment.loras, lambda: self.found)

    def lora_uses(self, segment: Segment) -> dict[Expert, list[LoraUse]]:
        """The LoRAs of each expert for a segment, as the function of this name."""
        return lora_uses(segment.sampler.variant, segment.sampler.distill, segment.loras, self.found)

    def _require_all(self, segment: Segment) -> None:
        distill = segment.sampler.distill
        pair = DISTILL if distill and not distill.files else ()
        self.found.require((*BASE, *SVI[segment.sampler.variant], *pair))

    def notes(self, segment: Segment) -> tuple[str, ...]:
        """What the user should know about a segment's weights. Raises InputError for files in wrong places.

        Nothing about what is missing: `inputs` reports that.
        """
        used = self.found.used
        variant, distill = segment.sampler.variant, segment.sampler.distill
        checks: list[Callable[[], list[str]]] = [lambda: list(self.found.notes)]
        if all(role in used for role in SVI[variant]):
            checks.append(lambda: check_svi_pair(variant, self.svi_pair(segment), self.digest))
        if distill is None or distill.files or all(role in used for role in DISTILL):
            own = [used[role].files[0] for role in SVI[variant] if role in used]
            for lora in self.extras(segment):
                experts = tuple(expert for expert in EXPERTS if lora.strength(expert))
                checks.append(partial(check_extra, lora.path, experts, self.digest, own))
        return tuple(note for notes in collect_problems(checks) for note in notes)
