"""LoRA files: every key understood or an error, merged in float32 and rounded once.

W = W0 + sum over LoRAs of strength * (alpha / rank) * B @ A, in the order given; no alpha: the factor is 1.
A weight in memory is a function of its stored value and its recipe alone. So changing the set of LoRAs
computes exactly the weights whose recipe changed again from the files, and changing back gives the same bits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.weights.architecture import from_native
from svi_story.engines.svi.weights.catalogue import EXPERTS
from svi_story.engines.svi.weights.tensors import FLOATS, StoredTensor, is_finite, read_safetensors
from svi_story.errors import InputError, Problem, collect_problems, shorten_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from svi_story.engines import Digest
    from svi_story.engines.svi.weights.catalogue import Expert, LoraPair
    from svi_story.engines.svi.weights.loading import Placement
    from svi_story.enginespec.sampling import Variant


_KEY = re.compile(r"(?P<module>.+?)\.(?:lora_(?P<side>A|B|down|up)(?:\.\w+)?\.weight|(?P<alpha>alpha))")
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.")
SVI_TARGETS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2")
"""What an SVI LoRA changes in each block, by diffusers' names; the same four again in attn2."""


@dataclass(frozen=True)
class LoraUse:
    """One LoRA file on one expert."""

    file: Path
    strength: float
    whole: bool = False
    """Whether the file must change every layer that SVI's own LoRAs change (a partial one is broken)."""


@dataclass(frozen=True)
class Factors:
    """One low-rank change of one weight: scale * up [out, rank] @ down [rank, in]."""

    down: StoredTensor
    up: StoredTensor
    scale: float


Recipe = tuple[Factors, ...]
"""All that is added to one weight, in order."""


def recipes(uses: Iterable[LoraUse], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Recipe]:
    """The recipe of each changed weight of an expert, for a set of LoRAs; strength 0 changes nothing.

    `shapes` are the expert's weights by diffusers' names. Raises InputError naming every key that is not
    understood, has no counterpart, or does not fit, in any of the files.
    """
    uses = list(uses)
    found: dict[str, Recipe] = {}
    for use, factors in zip(
        uses, collect_problems([partial(read_lora, use, shapes) for use in uses]), strict=True
    ):
        if use.strength:
            found |= {name: (*found.get(name, ()), factor) for name, factor in factors.items()}
    return found


def read_lora(use: LoraUse, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Factors]:
    """One file's changes by the names of the weights they change, scaled by strength. Raises InputError."""
    if not math.isfinite(use.strength):
        raise InputError(
            Problem(f"strength {use.strength} is not a number; use one like 1.0", file=str(use.file))
        )
    header, _ = read_safetensors(use.file)
    parts, problems = _sort_keys(header, shapes)
    factors: dict[str, Factors] = {}
    for name, sides in parts.items():
        wrong = _pair_problem(name, sides, shapes[name])
        if wrong:
            problems.append(wrong)
        else:
            scale = use.strength * _alpha(sides) if use.strength else 0.0
            factors[name] = Factors(sides["down"], sides["up"], scale)
    if use.whole and not problems:
        targets = {*SVI_TARGETS, *(target.replace("attn1", "attn2") for target in SVI_TARGETS)}
        layers = (n for n in shapes if re.sub(r"^blocks\.\d+\.|\.weight$", "", n) in targets)
        what = "nothing for {}: the file is not whole; download it again"
        problems += [Problem(what.format(n), file=str(use.file)) for n in layers if n not in factors]
    if problems:
        raise InputError(*shorten_problems(problems))
    if not factors:
        raise InputError(Problem("holds no LoRA weights; name another file", file=str(use.file)))
    return factors


def merge(entry: StoredTensor, recipe: Recipe, placement: Placement) -> Tensor:
    """A weight with its LoRAs, computed in float32 on the placement's device and rounded once to its dtype.

    Raises InputError when a factor holds NaN or Inf (two waits for the device for each factor).
    """
    import torch

    def read(factor: StoredTensor) -> Tensor:
        tensor = factor.read(placement.device).to(torch.float32)
        if not is_finite(tensor):
            what = f"{factor.key} holds NaN or Inf; download it again"
            raise InputError(Problem(what, file=str(factor.file)))
        return tensor

    weight = entry.read(placement.device).to(torch.float32, copy=True)
    for factors in recipe:
        down, up = read(factors.down), read(factors.up)
        weight.addmm_(up, down, alpha=factors.scale)
    return weight.to(placement.dtype)


def _sort_keys(
    header: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, dict[str, StoredTensor]], list[Problem]]:
    """The keys of a file by weight and side ("down", "up", "alpha"), and those that have no place."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    problems: list[Problem] = []
    for key, entry in header.items():
        match = _KEY.fullmatch(key)
        name = _weight_name(match["module"], shapes) if match else None
        if match is None or name is None:
            what = f"{key} belongs to no weight of the expert; is this a LoRA for Wan 2.2 I2V A14B?"
            problems.append(Problem(what, file=str(entry.file)))
            continue
        side = "alpha" if match["alpha"] else _SIDES[match["side"]]
        if side != "alpha" and entry.dtype not in FLOATS:  # alpha may be an integer
            what = f"{key} is stored as {entry.dtype}; LoRAs are read in 16 or 32 bits"
            problems.append(Problem(what, file=str(entry.file)))
        if side in parts.setdefault(name, {}):
            what = f"{key} and {parts[name][side].key} are for the same weight"
            problems.append(Problem(what, file=str(entry.file)))
        parts[name][side] = entry
    return parts, problems


def _weight_name(module: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The weight that a LoRA's module name means (native Wan or diffusers, with or without prefix)."""
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    names = (f"{module}.weight", from_native(f"{module}.weight"))
    return next((name for name in names if name in shapes), None)


def _pair_problem(name: str, sides: Mapping[str, StoredTensor], shape: tuple[int, ...]) -> Problem | None:
    """What is wrong with the two sides of one weight's change."""
    some = next(iter(sides.values()))
    if "down" not in sides or "up" not in sides:
        missing = "lora_A (lora_down)" if "down" not in sides else "lora_B (lora_up)"
        return Problem(f"{some.key} has no {missing} beside it; download it again", file=str(some.file))
    down, up = sides["down"].shape, sides["up"].shape
    if len(shape) != 2 or len(down) != 2 or len(up) != 2 or (up[0], down[1]) != shape or up[1] != down[0]:
        what = f"{sides['up'].key} {list(up)} @ {list(down)} does not fit {name} {list(shape)}"
        return Problem(f"{what}; is this a LoRA for Wan 2.2 I2V A14B?", file=str(some.file))
    if "alpha" in sides and math.prod(sides["alpha"].shape) != 1:
        return Problem(f"{sides['alpha'].key} is not one number; download it again", file=str(some.file))
    return None


def _alpha(sides: Mapping[str, StoredTensor]) -> float:
    """alpha / rank, or 1 without alpha. Raises InputError for NaN or Inf."""
    if "alpha" not in sides:
        return 1.0
    alpha = float(sides["alpha"].read().item())
    if not math.isfinite(alpha):
        entry = sides["alpha"]
        raise InputError(Problem(f"{entry.key} is {alpha}; download it again", file=str(entry.file)))
    return alpha / sides["down"].shape[0]


@dataclass(frozen=True)
class LoraRole:
    """What a LoRA file of SVI is made for."""

    variant: Variant
    expert: Expert

    def __str__(self) -> str:
        return f"SVI {self.variant} LoRA of the {self.expert}-noise expert"


OFFICIAL = {
    ("299b3300", "bd52"): LoraRole("2.0-pro", "high"),
    ("e8fcce15", "9c0b"): LoraRole("2.0-pro", "low"),
}
"""The first and last hex digits of the sha256 of the files the SVI authors published."""

_SVI_NAME = re.compile(r"svi_.*_(high|low)_noise_lora_v2\.0(_pro)?\.safetensors", re.IGNORECASE)
_EXPERT_NAME = re.compile(r"(?<![a-z])(high|low)[_-]?noise", re.IGNORECASE)


def known_role(digest: str) -> LoraRole | None:
    """The role of an official file, by its sha256."""
    return OFFICIAL.get((digest[:8], digest[-4:]))


def named_role(file: Path) -> LoraRole | None:
    """The role that a file's name claims, if it is named like an official SVI file."""
    match = _SVI_NAME.fullmatch(file.name)
    if match is None:
        return None
    return LoraRole("2.0-pro" if match[2] else "2.0", "high" if match[1].lower() == "high" else "low")


def check_svi_pair(variant: Variant, pair: LoraPair, digest: Digest) -> list[str]:
    """Notes about the variant's own pair. Raises InputError when a file is known to be another one's.

    A file that is not known is used as it is, and noted, as is one that was saved under two names.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    for expert in EXPERTS:
        file, wanted = pair.of(expert), LoraRole(variant, expert)
        known = known_role(digest(file))
        claimed = known or named_role(file)
        if claimed is not None and claimed != wanted:
            remedy = "the two experts' files are swapped: swap them back"
            if claimed.variant != variant:
                remedy = f"download the {variant} pair, or set engine.variant: {claimed.variant!r}"
            what = f"is the {claimed}, not the {wanted}; {remedy}"
            problems.append(Problem(what, file=str(file)))
        elif known is None:
            notes.append(f"{file}: not known to be the official {wanted} (by its sha256); used as it is")
    if problems:
        raise InputError(*problems)
    beside = [other for file in (pair.high, pair.low) for other in file.parent.glob("*.safetensors")]
    others = sorted({pair.high, pair.low, *(file for file in beside if named_role(file))})
    notes += [
        f"{file}: the same file as {other.name}; the official ones all differ, so download both again"
        for file in (pair.high, pair.low)
        for other in others
        if other != file and digest(other) == digest(file)
    ]
    return notes


def check_extra(file: Path, experts: tuple[Expert, ...], digest: Digest) -> list[str]:
    """Notes about a LoRA besides the pair, used on these experts. Raises InputError for one of SVI's own."""
    role = known_role(digest(file)) or named_role(file)
    if role is not None:
        what = f"is the {role}; engine.variant brings its pair by itself, so take it out of loras"
        raise InputError(Problem(what, file=str(file)))
    match = _EXPERT_NAME.search(file.name)
    meant = match[1].lower() if match else ""
    if not meant or all(expert == meant for expert in experts):
        return []
    return [f"{file}: named for the {meant}-noise expert, but used on the other one"]


def check_distill(pair: LoraPair) -> None:
    """Raises InputError when the distillation pair's names say that the two are swapped."""
    names = {expert: _EXPERT_NAME.search(pair.of(expert).name) for expert in EXPERTS}
    problems = [
        Problem(f"is named for the other expert than {expert}; swap the two", file=str(pair.of(expert)))
        for expert, match in names.items()
        if match and match[1].lower() != expert
    ]
    if problems:
        raise InputError(*problems)
