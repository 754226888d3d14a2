"""What the headers say about the models: the libraries' names, settings and sizes, from keys and shapes.

Sizes always come from the tensors' shapes; config.json adds only what no shape shows (heads, epsilons, latent
statistics). So a wrong config.json cannot build a model that the files do not fill.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.weights.formats import read_weights
from svi_story.engines.svi.weights.tensors import MAX_FILE
from svi_story.errors import InputError, Problem, collect_problems, shorten_problems
from svi_story.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from svi_story.engines.svi.weights.catalogue import ModelFiles, ModelPaths
    from svi_story.engines.svi.weights.tensors import StoredTensor

    Entries = Mapping[str, StoredTensor]
    Config = Mapping[str, object]
    Shapes = Mapping[str, tuple[int, ...]]

HEAD_SIZE = 128
"""Wan's head size, where no config.json gives the number of heads."""
MASK_CHANNELS = 4

_UMT5_TOP = {
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
    "encoder.embed_tokens.weight": "shared.weight",
    "token_embd.weight": "shared.weight",
    "enc.output_norm.weight": "encoder.final_layer_norm.weight",
}
TIED = ("encoder.embed_tokens.weight", "shared.weight")
"""The same weight twice in transformers' UMT5; files hold either or both."""
_UMT5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_UMT5_GGUF = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}


def name_transformer(keys: Iterable[str]) -> dict[str, str]:
    """Each key of an expert's files (native Wan or diffusers) -> its name in WanTransformer3DModel."""
    keys = list(keys)
    native = any(".self_attn." in key for key in keys)
    return {key: from_native(key) if native else key for key in keys}


def name_vae(keys: Iterable[str]) -> dict[str, str]:
    """Each key of a VAE's files (native Wan or diffusers) -> its name in AutoencoderKLWan."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    keys = list(keys)
    native = any(key.startswith("encoder.downsamples.") for key in keys)
    return {key: _converted(key, convert_wan_vae_to_diffusers) if native else key for key in keys}


def name_text_encoder(keys: Iterable[str]) -> dict[str, str]:
    """Each key of a text encoder's files (Wan's, transformers' or GGUF's) -> its name in UMT5EncoderModel."""
    return {key: _umt5_name(key) for key in keys}


def from_native(key: str) -> str:
    """A native Wan key of an expert -> diffusers' name (the key itself where there is none)."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return _converted(key, convert_wan_transformer_to_diffusers)


def _converted(key: str, convert: Callable[[dict[str, str]], dict[str, str]]) -> str:
    """Diffusers' own conversion of a state dict, run on one key alone."""
    try:
        (name,) = convert({key: key})
    except (ValueError, IndexError, TypeError):  # the conversion parses and slices; no real key fails it
        return key
    return name


def _umt5_name(key: str) -> str:
    if key in _UMT5_TOP:
        return _UMT5_TOP[key]
    parts = key.removeprefix("enc.").split(".")
    inner = ".".join(parts[2:-1])
    if parts[0] == "blk" and inner in _UMT5_GGUF:
        return f"encoder.block.{parts[1]}.{_UMT5_GGUF[inner]}.{parts[-1]}"
    if parts[0] == "blocks" and inner in _UMT5_BLOCK:
        return f"encoder.block.{parts[1]}.{_UMT5_BLOCK[inner]}.{parts[-1]}"
    return key


def by_name(entries: Entries, names: Mapping[str, str]) -> dict[str, StoredTensor]:
    """A model's tensors by the library's names. Raises InputError where two tensors would have one name."""
    found: dict[str, StoredTensor] = {}
    problems = []
    for key, entry in entries.items():
        name = names[key]
        if name in found:
            problems.append(Problem(f"{key} and {found[name].key} are the same weight", file=str(entry.file)))
        found[name] = entry
    if problems:
        raise InputError(*shorten_problems(problems))
    return found


def read_config(path: Path | None) -> dict[str, object]:
    """A config.json; nothing where there is none. Raises InputError when it is not a JSON object."""
    if path is None:
        return {}
    try:
        config = json.loads(read_regular(path, MAX_FILE))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(Problem("cannot be read as JSON; download it again", file=str(path))) from error
    if not isinstance(config, dict):
        raise InputError(Problem("is no JSON object; download it again", file=str(path)))
    return config


def transformer_settings(entries: Entries, config: Config) -> dict[str, object]:
    """The arguments of WanTransformer3DModel. Raises InputError for what is no image-to-video expert."""
    inner, channels, *patch = _shape(entries, "patch_embedding.weight", 5)
    out = _shape(entries, "proj_out.weight", 2)[0] // math.prod(patch)
    file = str(entries["patch_embedding.weight"].file)
    wanted = 2 * out + MASK_CHANNELS
    if channels != wanted:
        what = (
            f"takes {channels} channels, an image-to-video expert {wanted}; "
            "use the Wan 2.2 I2V A14B experts (T2V, TI2V and Animate are other models)"
        )
        raise InputError(Problem(what, file=file))
    heads = _heads(inner, config, file)
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": heads,
        "attention_head_dim": inner // heads,
        "in_channels": channels,
        "out_channels": out,
        "text_dim": _shape(entries, "condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": _shape(entries, "condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "ffn_dim": _shape(entries, "blocks.0.ffn.net.0.proj.weight", 2)[0],
        "num_layers": _blocks(entries, "blocks."),
        "cross_attn_norm": "blocks.0.norm2.weight" in entries,
        "eps": _number(config, "eps", 1e-6, file),
    }


def vae_settings(entries: Entries, config: Config) -> dict[str, object]:
    """The arguments of AutoencoderKLWan; latent statistics are Wan 2.1's unless config.json gives others."""
    base = _shape(entries, "encoder.conv_in.weight", 5)[0]
    stages = range(
        0, max(1, _blocks(entries, "encoder.down_blocks.")), 3
    )  # two residual blocks, then one that halves
    widths = [_shape(entries, f"encoder.down_blocks.{stage}.conv1.weight", 5)[0] for stage in stages]
    z_dim = _shape(entries, "post_quant_conv.weight", 5)[0]
    settings: dict[str, object] = {
        "base_dim": base,
        "decoder_base_dim": _shape(entries, "decoder.norm_out.gamma", 4)[0] * base // max(1, widths[0]),
        "dim_mult": [width // base for width in widths],
        "z_dim": z_dim,
    }
    return settings | _statistics(config, z_dim, str(entries["post_quant_conv.weight"].file))


def text_encoder_settings(entries: Entries, config: Config) -> dict[str, object]:
    """The arguments of UMT5Config. Source: Wan's text encoder (gated GELU, a position bias in each layer)."""
    first = "encoder.block.0.layer"
    buckets, heads = _shape(entries, f"{first}.0.SelfAttention.relative_attention_bias.weight", 2)
    vocabulary, width = _shape(entries, "shared.weight", 2)
    file = str(entries["shared.weight"].file)
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": _shape(entries, f"{first}.0.SelfAttention.q.weight", 2)[0] // heads,
        "d_ff": _shape(entries, f"{first}.1.DenseReluDense.wi_0.weight", 2)[0],
        "num_heads": heads,
        "num_layers": _blocks(entries, "encoder.block."),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": int(_number(config, "relative_attention_max_distance", 128, file)),
        "layer_norm_epsilon": _number(config, "layer_norm_epsilon", 1e-6, file),
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
    }


def _shape(entries: Entries, name: str, dims: int) -> tuple[int, ...]:
    entry = entries.get(name)
    if entry is None:
        files = sorted({str(other.file) for other in entries.values()})
        what = f"{name} is missing: is this the right file? Download it again"
        raise InputError(Problem(what, file=files[0] if files else ""))
    if len(entry.shape) != dims or 0 in entry.shape:
        what = f"{entry.key} has the shape {list(entry.shape)}; expected {dims} dimensions"
        raise InputError(Problem(what, file=str(entry.file)))
    return entry.shape


def _blocks(entries: Entries, prefix: str) -> int:
    """How many numbered blocks there are (a number left out shows as missing tensors later)."""
    return len({name.removeprefix(prefix).split(".")[0] for name in entries if name.startswith(prefix)})


def _heads(inner: int, config: Config, file: str) -> int:
    heads = config.get("num_heads", config.get("num_attention_heads", inner // HEAD_SIZE))
    if (
        not isinstance(heads, int)
        or isinstance(heads, bool)
        or heads < 1
        or inner % heads
        or inner // heads % 2
    ):
        what = f"{heads!r} heads do not divide a width of {inner}; config.json's num_heads says how many"
        raise InputError(Problem(what, file=file))
    return heads


def _number(config: Config, key: str, default: float, file: str) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        what = f"config.json's {key} is {value!r}, not a number above 0; download it again"
        raise InputError(Problem(what, file=file))
    return float(value)


def _statistics(config: Config, z_dim: int, file: str) -> dict[str, object]:
    """latents_mean and latents_std from config.json, if it has them. Raises InputError unless they fit."""
    import inspect

    from diffusers import AutoencoderKLWan

    known = inspect.signature(AutoencoderKLWan.__init__).parameters
    found: dict[str, object] = {}
    for key in ("latents_mean", "latents_std"):
        values = config.get(key, known[key].default)
        numbers = values if isinstance(values, list) else []
        finite = all(isinstance(v, int | float) and math.isfinite(v) for v in numbers)
        if not finite or len(numbers) != z_dim or (key == "latents_std" and min(numbers) <= 0):
            what = f"{key}: expected {z_dim} numbers, one for each latent channel; see the VAE's config.json"
            raise InputError(Problem(what, file=file))
        found[key] = list(numbers)
    return found


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether an expert's weight is held in int8 where the user asks for it: a linear layer's, in a block.

    By the authors' names and by diffusers'.
    """
    return name.startswith("blocks.") and len(shape) == 2


def scale_of(name: str) -> str:
    """The name of a quantised weight's scales."""
    return f"{name}_scale"


def weight_of(name: str) -> str:
    """The weight that a parameter of an expert is, or is the scales of."""
    return name.removesuffix("_scale")


@dataclass(frozen=True)
class ParameterCounts:
    """How large the models are, in parameters (not bytes); of the larger expert where the two differ."""

    expert: int
    blocks: int
    """In all the blocks of an expert."""
    block: int
    """In the largest block."""
    block_linear: int
    """In the weights of its linear layers."""
    block_rows: int
    """Rows that these weights have."""
    width: int
    inner: int
    """The inner width of the feed-forward layers."""
    vae: int
    vae_width: int
    """The VAE's narrowest channels, those of the full size."""
    text: int
    text_blocks: int
    text_block: int
    text_width: int


A14B = ParameterCounts(
    expert=14_288_901_184,
    blocks=14_055_772_160,
    block=351_394_304,
    block_linear=351_272_960,
    block_rows=59_904,
    width=5120,
    inner=13824,
    vae=126_892_531,
    vae_width=96,
    text=5_680_910_336,
    text_blocks=4_630_757_376,
    text_block=192_948_224,
    text_width=4096,
)
"""Of the published models: two experts of 40 blocks, Wan 2.1's VAE, UMT5-XXL's encoder."""


def count_parameters(paths: ModelPaths) -> ParameterCounts:
    """From the files' headers alone: no torch, no weights. Raises InputError for files that are no models."""

    def shapes_of(files: ModelFiles) -> Shapes:
        return {key: entry.shape for file in files.weights for key, entry in read_weights(file).items()}

    models = (paths.high, paths.low, paths.vae, paths.text_encoder)
    high, low, vae, text = collect_problems([partial(shapes_of, files) for files in models])
    try:
        return counts_of(max(high, low, key=_total), vae, text)
    except (StopIteration, LookupError, ValueError) as error:
        what = "the models' headers do not show their size; download them again"
        raise InputError(Problem(what, file=str(paths.high.weights[0]))) from error


def counts_of(expert: Shapes, vae: Shapes, text: Shapes) -> ParameterCounts:
    """Of models with these shapes. The keys may be Wan's own or the libraries'."""
    in_block = r"blocks\.(\d+)\."
    blocks = _totals(in_block, expert)
    linear = {name: shape for name, shape in expert.items() if is_quantized(name, shape)}
    text_blocks = _totals(r"(?:encoder\.block|enc\.blk|blocks)\.(\d+)\.", text)
    vae_inputs = ("encoder.conv1.weight", "encoder.conv_in.weight")
    embeddings = ("token_embedding.weight", "shared.weight", *TIED[:1], "token_embd.weight")
    return ParameterCounts(
        expert=_total(expert),
        blocks=sum(blocks),
        block=max(blocks),
        block_linear=max(_totals(in_block, linear), default=0),
        block_rows=max(_totals(in_block, {name: shape[:1] for name, shape in linear.items()}), default=0),
        width=expert["patch_embedding.weight"][0],
        inner=max(shape[0] for key, shape in expert.items() if key.startswith("blocks.") and ".ffn." in key),
        vae=_total(vae),
        vae_width=next(vae[key][0] for key in vae_inputs if key in vae),
        text=_total(text),
        text_blocks=sum(text_blocks),
        text_block=max(text_blocks),
        text_width=next(text[key][1] for key in embeddings if key in text),
    )


def _totals(pattern: str, shapes: Shapes) -> list[int]:
    """How many parameters each of the numbered blocks has."""
    totals: dict[str, int] = {}
    for key, shape in shapes.items():
        if match := re.match(pattern, key):
            totals[match[1]] = totals.get(match[1], 0) + math.prod(shape)
    return list(totals.values())


def _total(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
