"""LoRA files: every key understood or an error, merged in float32.

W = W0 + sum over LoRAs of strength * (alpha / rank) * B @ A, in the order given; no alpha: the factor is 1.
Where a file has whole differences of a weight or a bias (.diff, .diff_b), strength times those are added.
A weight in memory is a function of its stored value and its recipe alone. So changing the set of LoRAs
computes exactly the weights whose recipe changed again from the files, and changing back gives the same bits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.weights.architecture import from_native
from svi_story.engines.svi.weights.candidates import EXPERTS, expert_named
from svi_story.engines.svi.weights.tensors import (
    FLOATS,
    StoredTensor,
    is_finite,
    read_numbers,
    read_safetensors,
    title_of,
)
from svi_story.errors import InputError, Problem, collect_problems, shorten_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from svi_story.engines import Digest
    from svi_story.engines.svi.weights.candidates import Expert
    from svi_story.engines.svi.weights.catalogue import LoraPair
    from svi_story.enginespec.sampling import Variant


_KEY = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<side>A|B|down|up)(?:\.\w+)?\.weight|(?P<alpha>alpha)|(?P<diff>diff(?:_b)?))"
)
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
_PREFIXES = (
    *("base_model.model.", "model.", "diffusion_model.", "transformer.", "pipe.dit.", "unet."),
    *("lora_unet_", "lora_transformer_"),
)
_UNDERSCORED = re.compile(
    r"(blocks)_(\d+)_(self_attn|cross_attn)_(\w+)|(blocks)_(\d+)_(ffn)_(\d)|"
    r"(text_embedding|time_embedding|time_projection|head)_(\d|head)"
)
"""kohya's and musubi's names of Wan's layers, with _ for the dots."""
IMAGE_BRANCH = re.compile(
    r"(^|[._])(k_img|v_img|norm_k_img|img_emb|add_[kv]_proj|norm_added_k|image_embedder)[._]"
)
"""Layers of Wan 2.1's image-to-video model that Wan 2.2's experts do not have."""
_OTHER_KINDS = (
    ("DoRA", re.compile(r"dora_scale|lora_magnitude_vector")),
    ("LoKr", re.compile(r"lokr_")),
    ("LoHa", re.compile(r"hada_")),
)
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

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True)
class Difference:
    """One whole change of one weight: scale * values."""

    values: StoredTensor
    scale: float

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.values.nbytes


Recipe = tuple[Factors | Difference, ...]
"""All that is added to one weight, in order."""


def recipes(uses: Iterable[LoraUse], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Recipe]:
    """The recipe of each changed weight of an expert, for a set of LoRAs; strength 0 changes nothing.

    `shapes` are the expert's weights by diffusers' names. Raises InputError naming every key that is not
    understood, has no counterpart, or does not fit, in any of the files.
    """
    uses = list(uses)
    found: dict[str, Recipe] = {}
    for use, changes in zip(
        uses, collect_problems([partial(read_lora, use, shapes) for use in uses]), strict=True
    ):
        if use.strength:
            found |= {name: (*found.get(name, ()), *change) for name, change in changes.items()}
    return found


def read_lora(use: LoraUse, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Recipe]:
    """One file's changes by the names of the weights they change, scaled by strength. Raises InputError."""
    if not math.isfinite(use.strength):
        raise InputError(
            Problem(f"strength {use.strength} is not a number; use one like 1.0", file=str(use.file))
        )
    header, _ = read_safetensors(use.file)
    for kind, keys in _OTHER_KINDS:
        if key := next((key for key in header if keys.search(key)), None):
            what = f"is a {kind} ({key}), which is not read; use a plain LoRA"
            raise InputError(Problem(what, file=str(use.file)))
    parts, problems = _sort_keys(header, shapes)
    changes: dict[str, Recipe] = {}
    for name, sides in parts.items():
        wrong = _shape_problem(name, sides, shapes[name])
        if wrong:
            problems.append(wrong)
            continue
        if "up" in sides:
            scale = use.strength * _alpha(sides) if use.strength else 0.0
            changes[name] = (Factors(sides["down"], sides["up"], scale),)
        if "diff" in sides:
            changes[name] = (*changes.get(name, ()), Difference(sides["diff"], use.strength))
    if use.whole and not problems:
        targets = {*SVI_TARGETS, *(target.replace("attn1", "attn2") for target in SVI_TARGETS)}
        layers = (n for n in shapes if re.sub(r"^blocks\.\d+\.|\.weight$", "", n) in targets)
        what = "nothing for {}: the file is not whole; download it again"
        problems += [Problem(what.format(n), file=str(use.file)) for n in layers if n not in changes]
    if problems:
        raise InputError(*shorten_problems(problems))
    if not changes:
        raise InputError(Problem("holds no LoRA weights; name another file", file=str(use.file)))
    return changes


def merge(entry: StoredTensor, recipe: Recipe, device: torch.device) -> Tensor:
    """A weight with its LoRAs, in float32 on a device.

    Raises InputError when a factor holds NaN or Inf (two waits for the device for each factor).
    """
    import torch

    def read(factor: StoredTensor) -> Tensor:
        tensor = factor.read(device).to(torch.float32)
        if not is_finite(tensor):
            what = f"{factor.key} holds NaN or Inf; download it again"
            raise InputError(Problem(what, file=str(factor.file)))
        return tensor

    weight = entry.read(device).to(torch.float32, copy=True)
    for change in recipe:
        if isinstance(change, Factors):
            down, up = read(change.down), read(change.up)
            weight.addmm_(up, down, alpha=change.scale)
        else:
            weight.add_(read(change.values), alpha=change.scale)
    return weight


def _sort_keys(
    header: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, dict[str, StoredTensor]], list[Problem]]:
    """The keys of a file by weight and side ("down", "up", "alpha", "diff"), and those that have no place."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    problems: list[Problem] = []
    for key, entry in header.items():
        if IMAGE_BRANCH.search(key):
            continue
        match = _KEY.fullmatch(key)
        leaf = ".bias" if match and match["diff"] == "diff_b" else ".weight"
        name = _weight_name(match["module"], leaf, shapes) if match else None
        if match is None or name is None:
            what = f"{key} belongs to no weight of the expert; is this a LoRA for Wan 2.2 I2V A14B?"
            problems.append(Problem(what, file=str(entry.file)))
            continue
        side = "alpha" if match["alpha"] else "diff" if match["diff"] else _SIDES[match["side"]]
        if side != "alpha" and entry.dtype not in FLOATS:  # alpha may be an integer
            what = f"{key} is stored as {entry.dtype}; LoRAs are read in 16 or 32 bits"
            problems.append(Problem(what, file=str(entry.file)))
        if side in parts.setdefault(name, {}):
            what = f"{key} and {parts[name][side].key} are for the same weight"
            problems.append(Problem(what, file=str(entry.file)))
        parts[name][side] = entry
    return parts, problems


def _weight_name(module: str, leaf: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The weight that a LoRA's module name means (native Wan or diffusers, with or without prefix)."""
    module = module.replace("_orig_mod.", "")
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    if match := _UNDERSCORED.fullmatch(module):
        module = ".".join(part for part in match.groups() if part)
    name = f"{module}{leaf}"
    names = (name, from_native(name), from_native(module))  # blocks.0.modulation is itself a weight
    found = next((each for each in names if each in shapes), None)
    if found is None and "." not in module:  # diffusers' names with _ for the dots
        flat = name.replace(".", "_")
        found = next((each for each in shapes if each.replace(".", "_") == flat), None)
    return found


def _shape_problem(name: str, sides: Mapping[str, StoredTensor], shape: tuple[int, ...]) -> Problem | None:
    """What is wrong with the changes of one weight."""
    some = next(iter(sides.values()))
    if "diff" in sides and sides["diff"].shape != shape:
        what = f"{sides['diff'].key} {list(sides['diff'].shape)} does not fit {name} {list(shape)}"
        return Problem(f"{what}; is this a LoRA for Wan 2.2 I2V A14B?", file=str(some.file))
    if "diff" in sides and not sides.keys() & {"down", "up"}:
        return None
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
    ("6ddfead3", "1679"): LoraRole("2.0-pro", "high"),
    ("eae247da", "a7af"): LoraRole("2.0-pro", "low"),
}
"""The first and last hex digits of the sha256 of the SVI authors' files, and of kijai's copies in float16."""

_SVI_NAME = re.compile(r"(?<![a-z])svi(?![a-z])", re.IGNORECASE)
_PRO_NAME = re.compile(r"(?<![a-z])pro(?![a-z])", re.IGNORECASE)


def known_role(digest: str) -> LoraRole | None:
    """The role of an official file, by its sha256."""
    return OFFICIAL.get((digest[:8], digest[-4:]))


def named_role(file: Path) -> LoraRole | None:
    """The role that a file's name claims, if it is named like one of SVI's, whoever copied it."""
    expert = expert_named(file.name)
    if expert is None or not _SVI_NAME.search(file.name):
        return None
    return LoraRole("2.0-pro" if _PRO_NAME.search(file.name) else "2.0", expert)


def check_svi_pair(variant: Variant, pair: LoraPair, digest: Digest) -> list[str]:
    """Notes about the variant's own pair. Raises InputError when a file is known to be another one's.

    A file that is not known is used as it is, and noted, as is one that was saved under two names. Two that
    have one title are noted together.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    titles: dict[Path, str] = {}
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
            titles[file] = title_of(file)
            notes.append(f"{file}: not known to be the official {wanted} (by its sha256); used as it is")
    if problems:
        raise InputError(*problems)
    if len(titles) == len(EXPERTS) and len({*titles.values()}) == 1 and titles[pair.high]:
        notes = [f"{pair.high.parent}: not SVI's official LoRAs, but those of {titles[pair.high]!r}"]
    beside = [other for file in (pair.high, pair.low) for other in file.parent.glob("*.safetensors")]
    others = sorted({pair.high, pair.low, *(file for file in beside if named_role(file))})
    notes += [
        f"{file}: the same file as {other.name}; the official ones all differ, so download both again"
        for file in (pair.high, pair.low)
        for other in others
        if other != file and digest(other) == digest(file)
    ]
    return notes


def check_extra(
    file: Path, experts: tuple[Expert, ...], digest: Digest, own: Sequence[Path] = ()
) -> list[str]:
    """Notes about a LoRA besides the pair, used on these experts. Raises InputError for one of SVI's own.

    Those are known by their hash, their name, or the tensors of the files in `own`. What cannot be read as a
    LoRA is not reported here, but where it is loaded.
    """
    role = known_role(digest(file)) or named_role(file)
    try:
        header, _ = read_safetensors(file)
        twin = next((each for each in own if has_same_numbers(file, each)), None)
        is_copy = twin is not None and len(header) == len(read_safetensors(twin)[0])
    except InputError:
        header, twin, is_copy = {}, None, False
    if role or is_copy:
        what = f"is the {role}" if role else f"holds the same tensors as {twin}"
        remedy = "engine.variant brings its pair by itself, so take it out of loras"
        raise InputError(Problem(f"{what}; {remedy}", file=str(file)))
    notes = []
    if twin:
        notes.append(f"{file}: makes the same changes as {twin}, which is always used: they are made twice")
    if skipped := sum(bool(IMAGE_BRANCH.search(key)) for key in header):
        what = f"{skipped} tensors for the image branch of Wan 2.1's model are skipped: Wan 2.2 has none"
        notes.append(f"{file}: {what}")
    meant = expert_named(file.name)
    if meant and any(expert != meant for expert in experts):
        notes.append(f"{file}: named for the {meant}-noise expert, but used on the other one")
    return notes


def has_same_numbers(file: Path, other: Path) -> bool:
    """Whether two files change the same layers by the same numbers, whatever their names and precision."""
    return _has_same_numbers(file, other, (file.stat().st_mtime_ns, other.stat().st_mtime_ns))


@lru_cache(maxsize=256)
def _has_same_numbers(file: Path, other: Path, _written: tuple[int, int]) -> bool:
    one, two = (_layer_ups(each) for each in (file, other))
    if not one or one.keys() != two.keys():
        return False
    for layer in (min(one), max(one)):
        if one[layer].shape != two[layer].shape:
            return False
        some, wanted = read_numbers(one[layer]), read_numbers(two[layer])
        if abs(some - wanted).max() > 2**-7 * abs(wanted).max():  # bfloat16 has eight bits
            return False
    return True


def _layer_ups(file: Path) -> dict[str, StoredTensor]:
    """The up factors of a LoRA by Wan's own layer names with _ between their parts."""
    found: dict[str, StoredTensor] = {}
    for key, tensor in read_safetensors(file)[0].items():
        match = _KEY.fullmatch(key)
        if match and _SIDES.get(match["side"] or "") == "up" and tensor.dtype in FLOATS:
            name = re.sub(r".*?(?=blocks[._])", "", match["module"]).replace(".", "_")
            for diffusers, native in _DIFFUSERS_LAYERS:
                name = name.replace(diffusers, native)
            found[name] = tensor
    return found


_DIFFUSERS_LAYERS = (
    *(("attn1", "self_attn"), ("attn2", "cross_attn"), ("to_out_0", "o")),
    *(("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("net_0_proj", "0"), ("net_2", "2")),
)


def check_distill(pair: LoraPair) -> None:
    """Raises InputError when the distillation pair's names say that the two are swapped."""
    problems = [
        Problem(f"is named for the other expert than {expert}; swap the two", file=str(pair.of(expert)))
        for expert in EXPERTS
        if expert_named(pair.of(expert).name) not in (None, expert)
    ]
    if problems:
        raise InputError(*problems)
