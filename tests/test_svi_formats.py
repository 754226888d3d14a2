"""Weights in every format that is read are, bit for bit, the values they stand for; all else is rejected."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import svi_formats
import svi_support as support
import torch
from safetensors.torch import load_file, save_file

from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.weights import formats, gguf_files, loading
from svi_story.engines.svi.weights.candidates import EXPERTS
from svi_story.engines.svi.weights.catalogue import ModelFiles
from svi_story.engines.svi.weights.loading import Placement
from svi_story.engines.svi.weights.lora import LoraUse
from svi_story.engines.svi.weights.tensors import ScaledTensor, StoredTensor
from svi_story.errors import InputError
from svi_story.plan.model import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from svi_formats import Plain, Write
    from torch import Tensor

F32 = Placement(support.CPU, torch.float32)
PLACES = {
    **{name: folder / name for name, folder in support.EXPERT_FOLDERS.items()},
    "text": support.TEXT_FILE.with_suffix(""),
    "vae": support.VAE_FILE.with_suffix(""),
}


def plainly(path: Path, plain: Plain) -> Plain:
    """Store tensors as they are."""
    save_file({key: tensor.contiguous() for key, tensor in plain.items()}, f"{path}.safetensors")
    return plain


def store(root: Path, part: str, write: Write, plain: Plain) -> Plain:
    """Replace a model by these tensors in a format; returns the values that they have there."""
    place = root / PLACES[part]
    stale = [file for file in place.parent.iterdir() if part in EXPERTS or file.stem == place.name]
    for file in stale:
        file.unlink()
    if part in EXPERTS and plain["patch_embedding.weight"].shape[0] == 96:
        (place.parent / "config.json").write_text('{"num_heads": 4}', "utf-8")
    return write(place, plain)


def merged(files: ModelFiles, lora: Path) -> Plain:
    """An expert's weights in memory with a LoRA, in float32."""
    paths = replace(support.find_models(support.MODELS), high=files, low=files)
    experts = Experts(paths, F32, "torch-math")
    uses = [LoraUse(lora, 1.0, whole=True)]
    experts.set_loras({"high": uses, "low": uses})
    return dict(experts.use("high").named_parameters())


def assert_same(one: Plain, other: Plain) -> None:
    assert one.keys() == other.keys()
    different = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert not different


def files_of(path: Path, heads: int) -> ModelFiles:
    """The one file of that name, of either suffix, with a config."""
    (file,) = (each for each in path.parent.glob(f"{path.name}.*"))
    config = path.parent / "config.json"
    config.write_text(json.dumps({"num_heads": heads}), "utf-8")
    return ModelFiles((file,), config)


@pytest.mark.parametrize("name", [*svi_formats.FORMATS, *svi_formats.WIDE_FORMATS])
def test_an_expert_in_memory_is_bit_for_bit_what_its_values_are(name: str, tmp_path: Path) -> None:
    wide = name in svi_formats.WIDE_FORMATS
    write = {**svi_formats.FORMATS, **svi_formats.WIDE_FORMATS}[name]
    plain, heads = (svi_formats.wide_expert(0), 2) if wide else (svi_formats.expert("high"), 4)
    lora = tmp_path / "lora.safetensors"
    factors = svi_formats.wide_lora(0) if wide else load_file(support.lora_file(support.MODELS, "high"))
    save_file(factors, lora)
    values = write(tmp_path / "stored", plain)
    plainly(tmp_path / "plain", values)
    assert any(not torch.equal(values[key], plain[key]) for key in plain)
    stored, wanted = (merged(files_of(tmp_path / each, heads), lora) for each in ("stored", "plain"))
    assert_same(stored, wanted)


TEXT_FORMATS: dict[str, Write] = {
    "ComfyUI fp8_scaled": svi_formats.fp8("scale_weight", marker=0),
    "ComfyUI comfy_quant": svi_formats.fp8("weight_scale", declare="tensors", rest=torch.bfloat16),
    "quanto": svi_formats.int8(quanto=True),
    "GGUF": svi_formats.gguf_of(lambda _: "Q8_0", arch="t5encoder", rename=svi_formats.umt5_gguf_name),
    "GGUF Q4_K_M": svi_formats.gguf_of(
        svi_formats.mixed_k, arch="t5encoder", rename=svi_formats.umt5_gguf_name
    ),
}


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_a_text_encoder_in_memory_is_bit_for_bit_what_its_values_are(name: str, tmp_path: Path) -> None:
    plain = svi_formats.wide_text_encoder() if "_K" in name else svi_formats.text_encoder()
    values = TEXT_FORMATS[name](tmp_path / "stored", plain)
    if name == "ComfyUI fp8_scaled":  # which holds the vocabulary as a tensor of bytes
        vocabulary = {"spiece_model": torch.zeros(9, dtype=torch.uint8)}
        support.change_file(tmp_path / "stored.safetensors", lambda t: t | vocabulary)
    plainly(tmp_path / "plain", values)
    found = [
        dict(loading.load_text_encoder(ModelFiles((file,), None), F32).named_parameters())
        for file in (next(tmp_path.glob("stored.*")), tmp_path / "plain.safetensors")
    ]
    assert_same(*found)


def wide_models(root: Path) -> Path:
    """The tiny models with experts and a text encoder whose rows have 256 numbers."""
    models = support.copy_models(root)
    for seed, expert in enumerate(EXPERTS):
        store(models, expert, plainly, svi_formats.wide_expert(seed))
        save_file(svi_formats.wide_lora(seed), support.lora_file(models, expert))
    store(models, "text", plainly, svi_formats.wide_text_encoder())
    return models


def rendered(root: Path) -> support.Made:
    """A clip with a step of each expert, in float32."""
    picture = support.anchor_picture()[:32, :32]
    one = support.segment(settings=support.sampler(steps=2), frames=5, size=Size(32, 32))
    with support.engine(root, pictures={"anchor": picture}) as svi:
        svi.prepare([one])
        return support.render(svi, [one])[0]


def assert_renders_the_same(parts: Mapping[str, tuple[Write, Plain]], stored: Path, plain: Path) -> None:
    """Models in some formats, and with the values that they have there, make the same latents and frames."""
    for part, (write, tensors) in parts.items():
        store(plain, part, plainly, store(stored, part, write, tensors))
    one, other = rendered(stored), rendered(plain)
    assert np.array_equal(one.latents, other.latents)
    assert np.array_equal(one.frames, other.frames)


def test_mixed_formats_render_what_their_values_render(tmp_path: Path) -> None:
    parts = {
        "high": (svi_formats.FORMATS["ComfyUI fp8_scaled"], svi_formats.expert("high")),
        "low": (svi_formats.FORMATS["Q8_0"], svi_formats.expert("low")),
        "text": (TEXT_FORMATS["ComfyUI comfy_quant"], svi_formats.text_encoder()),
        "vae": (svi_formats.rounded(torch.bfloat16), load_file(support.MODELS / support.VAE_FILE)),
    }
    assert_renders_the_same(
        parts, support.copy_models(tmp_path / "stored"), support.copy_models(tmp_path / "plain")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [*svi_formats.FORMATS, *svi_formats.WIDE_FORMATS])
def test_every_format_renders_what_its_values_render(name: str, tmp_path: Path) -> None:
    if name in svi_formats.WIDE_FORMATS:
        write = svi_formats.WIDE_FORMATS[name]
        parts: Mapping[str, tuple[Write, Plain]] = {
            each: (write, svi_formats.wide_expert(seed)) for seed, each in enumerate(EXPERTS)
        }
        stored, plain = wide_models(tmp_path / "stored"), wide_models(tmp_path / "plain")
    else:
        write = svi_formats.FORMATS[name]
        parts = {each: (write, svi_formats.expert(each)) for each in EXPERTS}
        stored, plain = support.copy_models(tmp_path / "stored"), support.copy_models(tmp_path / "plain")
    assert_renders_the_same(parts, stored, plain)


@pytest.mark.parametrize("name", ["ComfyUI fp8_scaled", "quanto int8", "Q8_0"])
def test_tensors_are_dequantised_one_at_a_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model in memory and one tensor, never a second model."""
    svi_formats.FORMATS[name](tmp_path / "stored", svi_formats.expert("high"))
    dequantised: list[weakref.ref[Tensor]] = []

    def watch(kind: type[StoredTensor]) -> None:
        original = kind.read

        def read(tensor: StoredTensor, device: torch.device | None = None) -> Tensor:
            assert not any(earlier() is not None for earlier in dequantised)
            values = original(tensor, device)
            dequantised.append(weakref.ref(values))
            return values

        monkeypatch.setattr(kind, "read", read)

    watch(ScaledTensor)
    watch(gguf_files.GgufTensor)
    merged(files_of(tmp_path / "stored", 4), support.lora_file(support.MODELS, "high"))
    assert len(dequantised) >= 20


# --- what is not read


def uint8(text: str) -> Tensor:
    return torch.tensor(list(text.encode())).to(torch.uint8)


LAYER = "blocks.0.self_attn.q"
FP8 = svi_formats.fp8("scale_weight", marker=0)
COMFY = svi_formats.fp8("weight_scale", declare="tensors")
INT8 = svi_formats.int8(quanto=False)
REJECTED: dict[str, tuple[Write, Callable[[Plain], Plain], str]] = {
    "a missing scale": (
        FP8,
        lambda t: {key: each for key, each in t.items() if key != f"{LAYER}.scale_weight"},
        f"{LAYER}.weight is fp8 without a scale",
    ),
    "no scales at all": (
        FP8,
        lambda t: {key: each for key, each in t.items() if "scale" not in key},
        "is fp8 without a scale, so its true size is unknown",
    ),
    "a marker without fp8": (
        plainly,
        lambda t: t | {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)},
        "is marked as scaled fp8, but has no fp8 weight with a scale",
    ),
    "a scale of a 16-bit weight": (
        FP8,
        lambda t: t | {f"{LAYER}.weight": t[f"{LAYER}.weight"].half()},
        f"{LAYER}.scale_weight is a scale, but there is no quantised weight that it belongs to",
    ),
    "two scales": (FP8, lambda t: t | {f"{LAYER}.weight_scale": torch.ones(())}, "has two scales"),
    "scales of blocks": (
        FP8,
        lambda t: t | {f"{LAYER}.scale_weight": torch.ones(96, 3)},
        f"{LAYER}.weight [96, 96] has scales [96, 3] of type F32",
    ),
    "bytes": (
        FP8,
        lambda t: t | {f"{LAYER}.weight": torch.zeros(96, 48, dtype=torch.uint8)},
        f"{LAYER}.weight is stored as U8",
    ),
    "nvfp4": (
        FP8,
        lambda t: (
            t
            | {
                f"{LAYER}.weight": torch.zeros(96, 48, dtype=torch.uint8),
                f"{LAYER}.weight_scale_2": torch.ones(()),
            }
        ),
        "in the format nvfp4, which is not read",
    ),
    "bitsandbytes": (
        plainly,
        lambda t: (
            t
            | {
                f"{LAYER}.weight": torch.zeros(4608, 1, dtype=torch.uint8),
                f"{LAYER}.weight.absmax": torch.ones(144),
                f"{LAYER}.weight.quant_state.bitsandbytes__nf4": uint8("{}"),
            }
        ),
        "in the format bitsandbytes, which is not read",
    ),
    "mxfp8": (
        COMFY,
        lambda t: (
            t
            | {
                f"{LAYER}.comfy_quant": uint8('{"format": "mxfp8"}'),
                f"{LAYER}.weight_scale": torch.ones(96, 3).to(torch.uint8),
            }
        ),
        f"{LAYER}.weight is stored as F8_E4M3 in the format mxfp8, which is not read",
    ),
    "rotated int8": (
        INT8,
        lambda t: t | {f"{LAYER}.comfy_quant": uint8('{"format": "int8_tensorwise", "convrot": true}')},
        "in the format int8_tensorwise with convrot, which is not read",
    ),
    "undeclared int8": (
        INT8,
        lambda t: {key: each for key, each in t.items() if "comfy_quant" not in key},
        "is int8 in a format that the file does not name",
    ),
    "a declaration of a 16-bit weight": (
        COMFY,
        lambda t: (
            {key: each for key, each in t.items() if key != f"{LAYER}.weight_scale"}
            | {f"{LAYER}.weight": t[f"{LAYER}.weight"].half()}
        ),
        f"{LAYER} is declared as float8_e4m3fn, but is not stored so",
    ),
    "a declaration of the other fp8": (
        COMFY,
        lambda t: t | {f"{LAYER}.comfy_quant": uint8('{"format": "float8_e5m2"}')},
        f"{LAYER}.weight is stored as F8_E4M3 in the format float8_e5m2, which is not read",
    ),
    "a declaration that is none": (
        COMFY,
        lambda t: t | {f"{LAYER}.comfy_quant": uint8('{"form')},
        "declares the formats of its weights in a way that is not understood",
    ),
    "one weight with and without prefix": (
        FP8,
        lambda t: t | {"diffusion_model.head.head.bias": t["head.head.bias"].clone()},
        "head.head.bias and diffusion_model.head.head.bias are the same weight",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_not_certain_is_rejected_by_name(name: str, tmp_path: Path) -> None:
    write, change, message = REJECTED[name]
    file = tmp_path / "expert.safetensors"
    write(tmp_path / "expert", svi_formats.expert("high"))
    support.change_file(file, change)
    with pytest.raises(InputError) as caught:
        formats.read_weights(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
    assert len(caught.value.problems) <= 9


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_scale_is_named(tmp_path: Path, value: float) -> None:
    file = tmp_path / "expert.safetensors"
    FP8(tmp_path / "expert", svi_formats.expert("high"))
    support.change_file(file, lambda t: t | {f"{LAYER}.scale_weight": torch.tensor(value)})
    with pytest.raises(InputError, match=f"{LAYER}.scale_weight holds a scale that is not a number above 0"):
        formats.read_weights(file)[f"{LAYER}.weight"].read()


def test_quanto_files_with_a_map_beside_them(tmp_path: Path) -> None:
    """Wan2GP has the map in the header or in a file of its own."""
    plain = svi_formats.expert("high")
    svi_formats.int8(quanto=True)(tmp_path / "expert", plain)
    file = tmp_path / "expert.safetensors"
    support.change_file(file, lambda t: t)  # without metadata
    layers = {key.removesuffix(".weight"): {"weights": "qint8"} for key in plain if key.endswith(".q.weight")}
    beside = tmp_path / "expert_map.json"
    beside.write_text(json.dumps(layers), "utf-8")
    assert formats.describe(formats.read_weights(file).values()) == ("int8, scales per row", "I8")
    beside.write_text(json.dumps({LAYER: {"weights": "qint4"}}), "utf-8")
    with pytest.raises(InputError, match=f"{LAYER}.weight is stored as I8 in the format qint4"):
        formats.read_weights(file)


# --- GGUF


def test_a_gguf_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    for name in ("a", "b"):
        blocks = np.zeros((2, 66), np.uint8)
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"a is stored as IQ2_XXS; read are F32, .*IQ4_XS") as caught:
        formats.read_weights(tmp_path / "x.gguf")
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 100, 2000, -1, -5000])
def test_a_gguf_file_that_is_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "x.gguf"
    svi_formats.FORMATS["Q8_0"](tmp_path / "x", svi_formats.expert("high"))
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"x\.gguf: not a GGUF file, or cut short"):
        formats.read_weights(file)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (4, (2**24).to_bytes(4, "big")),  # another version, or big-endian
        (8, (2**40).to_bytes(8, "little")),  # tensors
        (16, (2**40).to_bytes(8, "little")),  # metadata
        (24, (2**40).to_bytes(8, "little")),  # the length of the first name
    ],
)
def test_a_hostile_gguf_header_is_rejected_at_once(tmp_path: Path, place: int, value: bytes) -> None:
    file = tmp_path / "x.gguf"
    svi_formats.FORMATS["Q8_0"](tmp_path / "x", svi_formats.expert("high"))
    data = bytearray(file.read_bytes())
    data[place : place + len(value)] = value
    file.write_bytes(data)
    with pytest.raises(InputError, match="not a GGUF file"):
        formats.read_weights(file)


def test_long_lists_in_a_gguf_header_are_skipped(tmp_path: Path) -> None:
    """A text encoder's header lists its vocabulary."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "t5encoder")
    writer.add_token_list([f"token {number}" for number in range(1000)])
    writer.add_token_scores([0.5] * 1000)
    writer.add_tensor("token_embd.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors, metadata = gguf_files.read_gguf(tmp_path / "x.gguf")
    assert metadata["general.architecture"] == "t5encoder"
    assert tensors["token_embd.weight"].read().tolist()[2] == [8.0, 9.0, 10.0, 11.0]


def test_without_the_gguf_package_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    svi_formats.FORMATS["Q8_0"](tmp_path / "x", svi_formats.expert("high"))
    tensors = formats.read_weights(tmp_path / "x.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"reading GGUF needs the package gguf: pip install"):
        tensors["head.head.bias"].read()
