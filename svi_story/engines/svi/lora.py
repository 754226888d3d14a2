"""LoRA files: every key understood or an error, merged in float32 and rounded once.

W = W0 + sum over LoRAs of strength * (alpha / rank) * B @ A, in the order given; no alpha: the factor is 1.
A weight in memory is a function of its stored value and its recipe alone. So changing the set of LoRAs makes
exactly the weights whose recipe changed anew from the files, and going back gives the same bits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.architecture import from_native
from svi_story.engines.svi.tensors import Entry, dtype_problems, is_finite, read_header
from svi_story.engines.svi.together import all_of, few
from svi_story.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from svi_story.engines.svi.loading import Place

_KEY = re.compile(r"(?P<module>.+?)\.(?:lora_(?P<side>A|B|down|up)(?:\.\w+)?\.weight|(?P<alpha>alpha))")
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
_PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.")
SVI_TARGETS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2")
"""What an SVI LoRA changes in each block, by diffusers' names; the same four again in attn2."""


@dataclass(frozen=True)
class Use:
    """One LoRA file on one expert."""

    file: Path
    strength: float
    whole: bool = False
    """Whether the file must change every layer that SVI's own LoRAs change (a partial one is broken)."""


@dataclass(frozen=True)
class Factors:
    """One low-rank change of one weight: scale * up [out, rank] @ down [rank, in]."""

    down: Entry
    up: Entry
    scale: float


Recipe = tuple[Factors, ...]
"""All that is added to one weight, in order."""


def recipes(uses: Iterable[Use], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Recipe]:
    """What each changed weight of an expert is made of, for a set of LoRAs; strength 0 changes nothing.

    `shapes` are the expert's weights by diffusers' names. Raises InputError naming every key that is not
    understood, has no counterpart, or does not fit, in any of the files.
    """
    uses = list(uses)
    found: dict[str, Recipe] = {}
    for use, factors in zip(uses, all_of([partial(read_lora, use, shapes) for use in uses]), strict=True):
        if use.strength:
            found |= {name: (*found.get(name, ()), factor) for name, factor in factors.items()}
    return found


def read_lora(use: Use, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Factors]:
    """One file's changes by the names of the weights they change, scaled by strength. Raises InputError."""
    if not math.isfinite(use.strength):
        raise InputError(
            Problem(f"strength {use.strength} is no number; use one like 1.0", file=str(use.file))
        )
    header = read_header(use.file)
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
        problems += _gaps(use.file, factors, shapes)
    if problems:
        raise InputError(*few(problems))
    if not factors:
        raise InputError(Problem("holds no LoRA weights; name another file", file=str(use.file)))
    return factors


def merge(entry: Entry, recipe: Recipe, place: Place) -> Tensor:
    """A weight with its LoRAs, computed in float32 on the place's device and rounded once to its dtype.

    Raises InputError when a factor holds NaN or infinity (two waits for the device for each factor).
    """
    import torch

    weight = entry.read().to(place.device).to(torch.float32, copy=True)
    for factors in recipe:
        down, up = (_read_factor(side, place) for side in (factors.down, factors.up))
        weight.addmm_(up, down, alpha=factors.scale)
    return weight.to(place.dtype)


def _read_factor(entry: Entry, place: Place) -> Tensor:
    import torch

    factor = entry.read().to(place.device).to(torch.float32)
    if not is_finite(factor):
        what = f"{entry.key} holds NaN or infinite numbers; download it again"
        raise InputError(Problem(what, file=str(entry.file)))
    return factor


def _sort_keys(
    header: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, dict[str, Entry]], list[Problem]]:
    """The keys of a file by weight and side ("down", "up", "alpha"), and those that have no place."""
    parts: dict[str, dict[str, Entry]] = {}
    problems: list[Problem] = []
    for key, entry in header.items():
        match = _KEY.fullmatch(key)
        name = _weight_name(match["module"], shapes) if match else None
        if match is None or name is None:
            what = f"{key} belongs to no weight of the expert; is this a LoRA for Wan 2.2 I2V A14B?"
            problems.append(Problem(what, file=str(entry.file)))
            continue
        side = "alpha" if match["alpha"] else _SIDES[match["side"]]
        problems += dtype_problems(entry) if side != "alpha" else []  # alpha may be an integer
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


def _pair_problem(name: str, sides: Mapping[str, Entry], shape: tuple[int, ...]) -> Problem | None:
    """What is wrong with the two sides of one weight's change."""
    some = next(iter(sides.values()))
    if "down" not in sides or "up" not in sides:
        lacks = "lora_A (lora_down)" if "down" not in sides else "lora_B (lora_up)"
        return Problem(f"{some.key} has no {lacks} beside it; download it again", file=str(some.file))
    down, up = sides["down"].shape, sides["up"].shape
    if len(shape) != 2 or len(down) != 2 or len(up) != 2 or (up[0], down[1]) != shape or up[1] != down[0]:
        what = f"{sides['up'].key} {list(up)} @ {list(down)} does not fit {name} {list(shape)}"
        return Problem(f"{what}; is this a LoRA for Wan 2.2 I2V A14B?", file=str(some.file))
    if "alpha" in sides and math.prod(sides["alpha"].shape) != 1:
        return Problem(f"{sides['alpha'].key} is not one number; download it again", file=str(some.file))
    return None


def _alpha(sides: Mapping[str, Entry]) -> float:
    """alpha / rank, or 1 without alpha. Raises InputError for an alpha that is no number."""
    if "alpha" not in sides:
        return 1.0
    alpha = float(sides["alpha"].read().item())
    if not math.isfinite(alpha):
        entry = sides["alpha"]
        raise InputError(Problem(f"{entry.key} is {alpha}; download it again", file=str(entry.file)))
    return alpha / sides["down"].shape[0]


def _gaps(file: Path, factors: Mapping[str, Factors], shapes: Mapping[str, tuple[int, ...]]) -> list[Problem]:
    """The layers that SVI's LoRAs change and this file does not."""
    targets = {*SVI_TARGETS, *(target.replace("attn1", "attn2") for target in SVI_TARGETS)}
    wanted = (n for n in shapes if re.sub(r"^blocks\.\d+\.|\.weight$", "", n) in targets)
    what = "nothing for {}: the file is not whole; download it again"
    return [Problem(what.format(name), file=str(file)) for name in wanted if name not in factors]
