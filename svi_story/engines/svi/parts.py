"""How large the models are, from their files' headers alone: no torch, no weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.together import all_of
from svi_story.errors import InputError, Problem
from svi_story.files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from svi_story.engines.svi.layout import Layout

    Shapes = Mapping[str, tuple[int, ...]]

MOST = 8 * 2**20
"""Bytes of a header, at most. A model of a thousand tensors needs a fiftieth; each takes a kilobyte here."""


@dataclass(frozen=True)
class Parts:
    """Numbers of values (not bytes), of the larger expert where the two differ."""

    expert: int
    blocks: int
    """In all the blocks of an expert."""
    block: int
    """In the largest block."""
    pinned: int
    """Of the blocks in pinned RAM, where torch gives every tensor a power of two."""
    width: int
    inner: int
    """The inner width of feeding forward."""
    vae: int
    vae_width: int
    """The VAE's narrowest channels, those of the full size."""
    text: int
    text_leaf: int
    """In the text encoder's largest tensor."""
    text_width: int


def read_parts(layout: Layout) -> Parts:
    """How large a layout's models are. Raises InputError for files that are no models."""
    models = (layout.high, layout.low, layout.vae, layout.text_encoder)
    high, low, vae, text = all_of([partial(shapes_in, files.weights) for files in models])
    try:
        return parts_of(max(high, low, key=_values), vae, text)
    except (StopIteration, LookupError, ValueError) as error:
        what = "the models' headers lack what tells their size; download them again"
        raise InputError(Problem(what, file=str(layout.high.weights[0]))) from error


def parts_of(expert: Shapes, vae: Shapes, text: Shapes) -> Parts:
    """How large models of these shapes are. The keys may be Wan's own or the libraries'."""
    blocks: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in expert.items():
        if key.startswith("blocks."):
            blocks.setdefault(key.split(".")[1], {})[key] = shape
    counts = [_values(block) for block in blocks.values()]
    some = next(iter(blocks.values()))
    return Parts(
        expert=_values(expert),
        blocks=sum(counts),
        block=max(counts),
        pinned=sum(_power(math.prod(shape)) for block in blocks.values() for shape in block.values()),
        width=expert["patch_embedding.weight"][0],
        inner=max(shape[0] for key, shape in some.items() if ".ffn." in key),
        vae=_values(vae),
        vae_width=next(vae[key][0] for key in VAE_IN if key in vae),
        text=_values(text),
        text_leaf=max(math.prod(shape) for shape in text.values()),
        text_width=next(text[key][1] for key in TEXT_IN if key in text),
    )


VAE_IN = ("encoder.conv1.weight", "encoder.conv_in.weight")
TEXT_IN = ("token_embedding.weight", "shared.weight", "encoder.embed_tokens.weight")


def shapes_in(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape in some safetensors files, by key. Raises InputError for what is none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with open_regular(file) as opened:
                length = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(length) if length <= MOST else b"")
            shapes |= {key: tuple(value["shape"]) for key, value in header.items() if key != "__metadata__"}
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            problem = Problem("not a safetensors file, or cut short; download it again", file=str(file))
            raise InputError(problem) from error
    return shapes


def _values(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _power(count: int) -> int:
    """The power of two that holds so many."""
    return 1 << max(0, count - 1).bit_length()


def a14b() -> Parts:
    """The published models: two experts of 40 blocks, Wan 2.1's VAE, UMT5-XXL's encoder."""
    vae = {"encoder.conv_in.weight": (96, 3, 3, 3, 3), "all the rest": (WAN_VAE_VALUES - 96 * 3 * 27,)}
    return parts_of(expert_shapes(5120, 13824, 40), vae, text_shapes(4096, 10240, 24, 256384))


WAN_VAE_VALUES = 126_892_531
"""Values in Wan 2.1's VAE."""


def expert_shapes(width: int, inner: int, layers: int, text_width: int = 4096) -> Shapes:
    """An image-to-video expert of Wan 2.2: 36 channels in, 16 out, patches of 1x2x2, 256 frequencies."""
    square = {"weight": (width, width), "bias": (width,)}
    block = {
        **{
            f"attn{number}.{name}.{part}": shape
            for number in (1, 2)
            for name in ("to_q", "to_k", "to_v", "to_out.0")
            for part, shape in square.items()
        },
        **{f"attn{number}.norm_{name}.weight": (width,) for number in (1, 2) for name in "qk"},
        **{f"norm2.{part}": (width,) for part in square},
        "ffn.net.0.proj.weight": (inner, width),
        "ffn.net.0.proj.bias": (inner,),
        "ffn.net.2.weight": (width, inner),
        "ffn.net.2.bias": (width,),
        "scale_shift_table": (1, 6, width),
    }
    embedders = {"text_embedder": text_width, "time_embedder": 256}
    return {
        **{f"blocks.{n}.{name}": shape for n in range(layers) for name, shape in block.items()},
        **{f"{name}.linear_1.weight": (width, of) for name, of in embedders.items()},
        **{f"{name}.linear_1.bias": (width,) for name in embedders},
        **{f"{name}.linear_2.{part}": shape for name in embedders for part, shape in square.items()},
        "time_proj.weight": (6 * width, width),
        "time_proj.bias": (6 * width,),
        "patch_embedding.weight": (width, 36, 1, 2, 2),
        "patch_embedding.bias": (width,),
        "scale_shift_table": (1, 2, width),
        "proj_out.weight": (64, width),
        "proj_out.bias": (64,),
    }


def text_shapes(width: int, inner: int, layers: int, vocabulary: int) -> Shapes:
    """A UMT5 encoder with heads of 64 and 32 relative positions."""
    block = {
        **{f"attn.{name}": (width, width) for name in "qkvo"},
        "positions": (32, width // 64),
        "gate": (inner, width),
        "fc1": (inner, width),
        "fc2": (width, inner),
        "norm1": (width,),
        "norm2": (width,),
    }
    blocks = {f"{n}.{name}": shape for n in range(layers) for name, shape in block.items()}
    return {**blocks, "shared.weight": (vocabulary, width), "norm": (width,)}
