"""The tiny checkpoint in the formats that weights circulate in, each with the values that it stands for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import svi_support as support
import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    Plain = dict[str, Tensor]
    Write = Callable[[Path, Plain], Plain]
    """Writes a model's tensors to a path without suffix; returns the values that they have there."""

FP8_MAX = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


def expert(name: str, root: Path = support.MODELS) -> Plain:
    """An expert's tensors by Wan's own names."""
    shards = sorted((root / support.EXPERT_FOLDERS[name]).glob("*.safetensors"))
    return {key: tensor for shard in shards for key, tensor in load_file(shard).items()}


def text_encoder() -> Plain:
    """The text encoder's tensors by transformers' names."""
    from svi_story.engines.svi.weights.architecture import name_text_encoder

    stored = load_file(support.MODELS / support.TEXT_FILE)
    return {name_text_encoder([key])[key]: tensor for key, tensor in stored.items()}


def is_linear(key: str, tensor: Tensor) -> bool:
    """Whether it is the weight of a linear layer within the blocks."""
    return key.startswith(("blocks.", "encoder.block.")) and tensor.ndim == 2 and ".rel" not in key


def fp8(
    scale_name: str,
    dtype: torch.dtype = torch.float8_e4m3fn,
    rest: torch.dtype = torch.float16,
    *,
    per_row: bool = False,
    extra: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    marker: int | None = None,
    declare: str = "",
    prefix: str = "",
) -> Write:
    """fp8 with scales. `extra` are more tensors for each layer, `declare` is tensors or header."""

    def write(path: Path, plain: Plain) -> Plain:
        stored: Plain = {}
        values: Plain = {}
        layers: dict[str, Any] = {}
        for key, tensor in plain.items():
            if not is_linear(key, tensor):
                stored[key] = tensor.to(rest)
                values[key] = stored[key].float()
                continue
            layer = key.removesuffix(".weight")
            peak = tensor.abs().amax(dim=1, keepdim=True) if per_row else tensor.abs().max()
            scale = (peak / FP8_MAX[dtype]).float()
            stored[key] = (tensor / scale).to(dtype)
            stored[f"{layer}.{scale_name}"] = scale
            values[key] = stored[key].float() * scale
            for name, make in (extra or {}).items():
                stored[f"{layer}.{name}"] = make(tensor)
            layers[layer] = {"format": "float8_e5m2" if dtype == torch.float8_e5m2 else "float8_e4m3fn"}
            if declare == "tensors":
                stored[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(layers[layer]).encode())).to(
                    torch.uint8
                )
        if marker is not None:
            stored["scaled_fp8"] = torch.zeros(marker, dtype=dtype)
        header = {"format_version": "1.0", "layers": layers}
        metadata = {"_quantization_metadata": json.dumps(header)} if declare == "header" else None
        stored = {prefix + key: tensor.contiguous() for key, tensor in stored.items()}
        save_file(stored, f"{path}.safetensors", metadata)
        return values

    return write


def rounded(dtype: torch.dtype) -> Write:
    """Every tensor in a 16- or 32-bit type."""

    def write(path: Path, plain: Plain) -> Plain:
        stored = {key: tensor.to(dtype).contiguous() for key, tensor in plain.items()}
        save_file(stored, f"{path}.safetensors")
        return {key: tensor.float() for key, tensor in stored.items()}

    return write


def int8(*, quanto: bool, per_row: bool = True) -> Write:
    """ComfyUI's int8_tensorwise, or Wan2GP's quanto files."""

    def write(path: Path, plain: Plain) -> Plain:
        stored: Plain = {}
        values: Plain = {}
        layers: dict[str, Any] = {}
        for key, tensor in plain.items():
            if not is_linear(key, tensor):
                stored[key] = tensor.to(torch.bfloat16)
                values[key] = stored[key].float()
                continue
            layer = key.removesuffix(".weight")
            scale = (tensor.abs().amax(dim=1, keepdim=True) if per_row else tensor.abs().max()) / 127
            scale = scale.to(torch.bfloat16) if quanto else scale.float()
            numbers = (tensor / scale.float()).round().clamp(-127, 127).to(torch.int8)
            values[key] = numbers.float() * scale.float()
            if quanto:
                stored |= {f"{key}._data": numbers, f"{key}._scale": scale}
                stored |= {f"{layer}.{name}": torch.ones(()) for name in ("input_scale", "output_scale")}
                layers[layer] = {"weights": "qint8", "activations": "none"}
            else:
                declared = list(json.dumps({"format": "int8_tensorwise"}).encode())
                stored |= {key: numbers, f"{layer}.weight_scale": scale}
                stored[f"{layer}.comfy_quant"] = torch.tensor(declared).to(torch.uint8)
        metadata = {"quantization_map": json.dumps(layers)} if quanto else None
        save_file({k: t.contiguous() for k, t in stored.items()}, f"{path}.safetensors", metadata)
        return values

    return write


def gguf_of(
    kinds: Callable[[str], str], arch: str = "wan", rename: Callable[[str], str] = lambda key: key
) -> Write:
    """GGUF; `kinds` gives the type of a weight matrix."""

    def write(path: Path, plain: Plain) -> Plain:
        writer = gguf.GGUFWriter(f"{path}.gguf", arch)
        values: Plain = {}
        random = np.random.default_rng(0)
        for key, tensor in plain.items():
            name, array = rename(key), tensor.float().numpy()
            kind = gguf.GGMLQuantizationType[kinds(key) if is_linear(key, tensor) else "F32"]
            if array.ndim > 4:
                writer.add_array(f"comfy.gguf.orig_shape.{name}", list(array.shape))
                array = array.reshape(array.shape[0], -1)
            if kind.name in CANNOT_QUANTISE:
                stored = random_blocks(kind, array.shape, float(array.std()), random)
            else:
                stored = gguf.quants.quantize(array, kind)
            writer.add_tensor(name, stored, raw_dtype=kind)
            back = gguf.quants.dequantize(stored, kind)
            values[key] = torch.from_numpy(np.array(back, np.float32)).reshape(tensor.shape)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return values

    return write


CANNOT_QUANTISE = {
    # Places of the float16 numbers in a block (bytes from its start), as ggml defines the blocks.
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}


def random_blocks(
    kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], std: float, random: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Valid blocks of a type that the gguf package cannot quantise to: random bytes with finite scales."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = shape
    blocks = random.integers(0, 256, (rows * columns // values, size), dtype=np.uint8)
    for place in CANNOT_QUANTISE[kind.name]:
        blocks[:, place : place + 2] = np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
    spread = float(gguf.quants.dequantize(blocks, kind).std())
    for place in CANNOT_QUANTISE[kind.name]:
        number = np.float16(1e-3 * std / spread)
        blocks[:, place : place + 2] = np.frombuffer(number.tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def umt5_gguf_name(key: str) -> str:
    """transformers' name of a text encoder's weight -> llama.cpp's."""
    names = {
        "shared.weight": "token_embd.weight",
        "encoder.final_layer_norm.weight": "enc.output_norm.weight",
    }
    if key in names:
        return names[key]
    parts = {
        "layer.0.layer_norm": "attn_norm",
        "layer.0.SelfAttention.q": "attn_q",
        "layer.0.SelfAttention.k": "attn_k",
        "layer.0.SelfAttention.v": "attn_v",
        "layer.0.SelfAttention.o": "attn_o",
        "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
        "layer.1.layer_norm": "ffn_norm",
        "layer.1.DenseReluDense.wi_0": "ffn_gate",
        "layer.1.DenseReluDense.wi_1": "ffn_up",
        "layer.1.DenseReluDense.wo": "ffn_down",
    }
    block, _, rest = key.removeprefix("encoder.block.").partition(".")
    return f"enc.blk.{block}.{parts[rest.removesuffix('.weight')]}.weight"


def mixed_k(key: str) -> str:
    """Q4_K_M: some layers are kept in a finer type."""
    return "Q6_K" if ".v." in key or "ffn.2" in key else "Q4_K"


def wide_expert(seed: int) -> Plain:
    """A random expert whose rows have 256 or 512 numbers, by Wan's own names."""
    from diffusers import WanTransformer3DModel
    from test_svi_loading import native_name

    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=36,
        num_layers=1,
        ffn_dim=512,
        text_dim=256,
        freq_dim=256,
    )
    return {native_name(name): tensor for name, tensor in model.state_dict().items()}


def wide_text_encoder() -> Plain:
    """A random text encoder of the same width, by transformers' names."""
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(2)
    sizes = {"vocab_size": 153, "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 1, "num_heads": 4}
    model = UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu"))
    return {key: tensor for key, tensor in model.state_dict().items() if key != "encoder.embed_tokens.weight"}


def wide_lora(seed: int) -> Plain:
    """A LoRA that changes every layer of a wide expert that SVI's own ones change."""
    torch.manual_seed(seed)
    found: Plain = {}
    for key, tensor in wide_expert(0).items():
        if is_linear(key, tensor):
            layer = key.removesuffix(".weight")
            found[f"{layer}.lora_A.default.weight"] = torch.randn(4, tensor.shape[1]) / 16
            found[f"{layer}.lora_B.default.weight"] = torch.randn(tensor.shape[0], 4) / 16
    return found


FORMATS: dict[str, Write] = {
    "ComfyUI fp8_scaled": fp8("scale_weight", extra={"scale_input": lambda _: torch.ones(())}, marker=0),
    "ComfyUI fp8, marker of two": fp8("scale_weight", marker=2, prefix="model.diffusion_model."),
    "ComfyUI comfy_quant": fp8(
        "weight_scale",
        rest=torch.bfloat16,
        declare="tensors",
        extra={"input_scale": lambda _: torch.ones(())},
        prefix="diffusion_model.",
    ),
    "ComfyUI header": fp8("weight_scale", rest=torch.bfloat16, declare="header", prefix="diffusion_model."),
    "kijai e4m3": fp8("scale_weight", rest=torch.float32),
    "kijai e5m2": fp8("scale_weight", torch.float8_e5m2, torch.float32, marker=0),
    "LightX2V": fp8("weight_scale", rest=torch.bfloat16, per_row=True),
    "int8_tensorwise": int8(quanto=False, per_row=False),
    "int8_tensorwise per row": int8(quanto=False),
    "quanto int8": int8(quanto=True),
    **{kind: gguf_of(lambda _, kind=kind: kind) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")},  # type: ignore[misc]  # the kind as a default
    "GGUF F16": gguf_of(lambda _: "F16"),
    "GGUF BF16": gguf_of(lambda _: "BF16"),
}
"""Those that the tiny checkpoint can be stored in: its rows have 96 numbers."""
WIDE_FORMATS: dict[str, Write] = {
    **{kind: gguf_of(lambda _, kind=kind: kind) for kind in CANNOT_QUANTISE},  # type: ignore[misc]  # as above
    "Q4_K_M": gguf_of(mixed_k),
}
"""Those that need rows of 256 numbers."""
