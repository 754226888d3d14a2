"""The formats that weights are stored in: what each tensor means, or an error that names the format.

A quantised weight is read only if it is certain which scale belongs to it. A scale that is missed gives
weights that are about 1000 times too large, and no error anywhere.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.weights.gguf_files import is_gguf, read_gguf
from svi_story.engines.svi.weights.tensors import (
    FLOATS,
    FP8,
    MAX_FILE,
    ScaledTensor,
    StoredTensor,
    read_safetensors,
)
from svi_story.errors import InputError, Problem, collect_problems, shorten_problems
from svi_story.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What may stand before the names of an expert's tensors."""
SUFFIXES = (".safetensors", ".gguf")
"""Of the files that weights are read from."""
TOKENIZER = "spiece_model"
"""A text encoder's vocabulary, stored as a tensor of bytes in ComfyUI's files."""
FP8_MARKER = "scaled_fp8"
SCALES = ("scale_weight", "weight_scale")
ACTIVATION_SCALES = ("scale_input", "input_scale", "output_scale")
"""About activations, which are not quantised here."""
DECLARED = {
    "F8_E4M3": ("float8_e4m3fn",),
    "F8_E5M2": ("float8_e5m2",),
    "I8": ("int8_tensorwise", "qint8"),
}
"""The formats that a file may declare, by the type of the stored numbers."""
UNQUANTISED = ("none", "float32", "float16", "bfloat16")
READ = "16 or 32 bits, fp8 with scales, int8 with scales (int8_tensorwise, quanto qint8), and GGUF"

_RANKS = (
    *(
        "F64",
        "F32",
        "F16",
        "BF16",
        "Q8_0",
        "I8",
        "Q6_K",
        "F8_E4M3",
        "Q5_K",
        "Q5_1",
        "Q5_0",
        "F8_E5M2",
        "IQ4_NL",
    ),
    *("Q4_K", "IQ4_XS", "Q4_1", "Q4_0", "Q3_K", "Q2_K"),
)
RANKS = {name: rank for rank, name in enumerate(_RANKS)}
"""Types from the most precise to the least, by the measured error of the weights (docs/weights.md)."""


def read_weights(file: Path) -> dict[str, StoredTensor]:
    """Every weight of a file by key, dequantised when it is read. Reads headers only.

    Raises InputError that names every tensor whose format is not certain.
    """
    if is_gguf(file):
        tensors, _ = read_gguf(file)
        return _without_prefixes(tensors)
    stored, metadata = read_safetensors(file)
    return _interpret(file, stored, metadata)


def read_shards(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every weight of a model whose files these are. Raises InputError for bad files and formats."""
    files = list(files)
    entries: dict[str, StoredTensor] = {}
    problems: list[Problem] = []
    for found in collect_problems([partial(read_weights, file) for file in files]):
        twice = [(entry, entries[key]) for key, entry in found.items() if key in entries]
        what = "holds {}, as does {}"
        problems += shorten_problems(
            [Problem(what.format(one.key, other.file.name), file=str(one.file)) for one, other in twice]
        )
        entries |= found
    if not entries:
        problems += [Problem("holds no tensors; download it again", file=str(file)) for file in files]
    if problems:
        raise InputError(*problems)
    return entries


def describe(tensors: Iterable[StoredTensor]) -> tuple[str, str]:
    """The format of a model and the type that most of its numbers are stored in, as words."""
    from math import prod

    counts: dict[tuple[str, str], int] = {}
    for tensor in tensors:
        kind = (format_of(tensor), tensor.dtype)
        counts[kind] = counts.get(kind, 0) + prod(tensor.shape)
    if not counts:
        return "", ""
    return max(counts, key=lambda kind: (counts[kind], kind))


def format_of(tensor: StoredTensor) -> str:
    """The format of one tensor."""
    if isinstance(tensor, ScaledTensor):
        rows = "per row" if tensor.scale.shape not in ((), (1,)) else "per tensor"
        return f"{'int8' if tensor.dtype == 'I8' else 'fp8'}, scales {rows}"
    return "GGUF" if type(tensor) is not StoredTensor else "plain"


def _interpret(
    file: Path, stored: Mapping[str, StoredTensor], metadata: Mapping[str, str]
) -> dict[str, StoredTensor]:
    """The weights of a safetensors file. Raises InputError."""
    declared = _declared_formats(file, stored, metadata)
    found: dict[str, StoredTensor] = {}
    problems: list[str] = []
    used: set[str] = set()
    for key, tensor in stored.items():
        layer, _, last = key.rpartition(".")
        if _without_prefix(key) in (TOKENIZER, FP8_MARKER) or last in (*SCALES, "_scale", "comfy_quant"):
            continue
        if last in ACTIVATION_SCALES and {f"{layer}.weight", f"{layer}.weight._data"} & stored.keys():
            continue
        if tensor.dtype in FLOATS:
            found[key] = tensor
            continue
        name = key.removesuffix("._data")
        try:
            scale = _scale_of(name, tensor, stored, declared.get(_layer(name), ""))
        except ValueError as error:
            problems.append(str(error))
            continue
        used.add(scale.key)
        found[name] = ScaledTensor(file, name, tensor.shape, tensor.dtype, tensor.written, tensor, scale)
    quantised = {_layer(name) for name, tensor in found.items() if isinstance(tensor, ScaledTensor)}
    if not problems:
        scales = [key for key in stored if key.rpartition(".")[2] in (*SCALES, "_scale")]
        what = "{} is a scale, but there is no quantised weight that it belongs to"
        problems += [what.format(key) for key in scales if key not in used]
        what = "{} is declared as {}, but is not stored so"
        problems += [what.format(layer, form) for layer, form in declared.items() if layer not in quantised]
    marked = any(_without_prefix(key) == FP8_MARKER for key in stored)
    if marked and not quantised and not problems:
        problems.append("is marked as scaled fp8, but has no fp8 weight with a scale")
    if problems:
        remedy = f"use another file of this model (read are {READ})"
        first = [Problem(f"{what}; {remedy}", file=str(file)) for what in problems[:1]]
        raise InputError(*shorten_problems([*first, *(Problem(p, file=str(file)) for p in problems[1:])]))
    return _without_prefixes(found)


def _scale_of(name: str, tensor: StoredTensor, stored: Mapping[str, StoredTensor], form: str) -> StoredTensor:
    """The scale of a quantised weight, whose format the file may name. Raises ValueError in words."""
    layer, quanto = name.removesuffix(".weight"), tensor.key.endswith("._data")
    if f"{layer}.weight_scale_2" in stored:
        form = form or "nvfp4"
    if any(key.startswith(f"{name}.quant_state.") for key in stored) or f"{name}.absmax" in stored:
        form = form or "bitsandbytes"
    if form and form not in DECLARED.get(tensor.dtype, ()):
        raise ValueError(f"{name} is stored as {tensor.dtype} in the format {form}, which is not read")
    if tensor.dtype not in (*FP8, "I8") or (quanto and tensor.dtype != "I8"):
        raise ValueError(f"{name} is stored as {tensor.dtype}, which is not read")
    if tensor.dtype == "I8" and not quanto and form != "int8_tensorwise":
        raise ValueError(f"{name} is int8 in a format that the file does not name")
    names = [f"{name}._scale"] if quanto else [f"{layer}.{each}" for each in SCALES]
    scales = [stored[each] for each in names if each in stored]
    if not scales:
        kind = "int8" if tensor.dtype == "I8" else "fp8"
        raise ValueError(f"{name} is {kind} without a scale, so its true size is unknown")
    if len(scales) > 1:
        raise ValueError(f"{name} has two scales, {' and '.join(each.key for each in scales)}")
    (scale,) = scales
    if scale.dtype not in FLOATS or scale.shape not in ((), (1,), tensor.shape[:1], (*tensor.shape[:1], 1)):
        what = f"{name} {list(tensor.shape)} has scales {list(scale.shape)} of type {scale.dtype}"
        raise ValueError(f"{what}; a floating-point one for all or for each row is read")
    return scale


def _declared_formats(
    file: Path, stored: Mapping[str, StoredTensor], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Layer (without prefix) -> the name of its format, where the file declares it. Raises InputError."""
    from safetensors import safe_open

    found: dict[str, str] = {}
    map_file = file.with_name(f"{file.stem}_map.json")  # Wan2GP's quanto files
    try:
        markers = [key for key in stored if key.endswith(".comfy_quant")]
        with safe_open(file, framework="np") as opened:  # needs no torch
            for key in markers:
                found[_layer(key)] = _format_name(json.loads(bytes(opened.get_tensor(key))))
        layers = json.loads(metadata.get("_quantization_metadata", "{}")).get("layers", {})
        found |= {_layer(name): _format_name(each) for name, each in layers.items()}
        quanto = metadata.get("quantization_map")
        if quanto is None and any(key.endswith("._data") for key in stored) and map_file.is_file():
            quanto = read_regular(map_file, MAX_FILE).decode()
        found |= {_layer(name): each["weights"] for name, each in json.loads(quanto or "{}").items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        what = f"declares the formats of its weights in a way that is not understood ({error})"
        raise InputError(Problem(f"{what}; use another file of this model", file=str(file))) from error
    return {layer: form for layer, form in found.items() if form not in UNQUANTISED}


def _format_name(declaration: object) -> str:
    """The format of one layer as the file declares it: a name, or an object that has one."""
    if isinstance(declaration, str):
        return declaration
    if not isinstance(declaration, dict):
        raise TypeError(f"{declaration!r}")
    turned = [key for key, value in declaration.items() if value and ("rot" in key or "hadamard" in key)]
    return str(declaration["format"]) + "".join(f" with {key}" for key in turned)


def _layer(name: str) -> str:
    return _without_prefix(name).removesuffix(".comfy_quant").removesuffix(".weight")


def _without_prefixes(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The same tensors without what stands before a model's names. Raises InputError where two become one."""
    found: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        other = found.setdefault(_without_prefix(key), tensor)
        if other is not tensor:
            what = f"{key} and {other.key} are the same weight"
            raise InputError(Problem(what, file=str(tensor.file)))
    return found


def _without_prefix(key: str) -> str:
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key
