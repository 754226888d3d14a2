"""LoRAs: every key understood or an error; merged in float32, rounded once; switching is exact."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
import svi_support as support
import torch
from safetensors.torch import load_file, save_file

from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.memory import MemoryPlan
from svi_story.engines.svi.weights import lora, tensors
from svi_story.engines.svi.weights.architecture import from_native
from svi_story.engines.svi.weights.candidates import EXPERTS
from svi_story.engines.svi.weights.loading import Placement, read_transformer
from svi_story.engines.svi.weights.lora import LoraUse
from svi_story.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from svi_story.engines.svi.weights.candidates import Expert

F32 = Placement(support.CPU, torch.float32)
BF16 = Placement(support.CPU, torch.bfloat16)
HIGH = support.lora_file(support.MODELS, "high")
PRO = support.lora_file(support.MODELS, "high", "2.0-pro")
EXPERT = support.find_models(support.MODELS).high
SHAPES = {name: entry.shape for name, entry in read_transformer(EXPERT).entries.items()}
RANK = 4


def convention(rename: Callable[[str], str], alpha: float | None = None) -> Callable[[Path], Path]:
    """A copy of the high-noise LoRA in another key convention."""

    def write(folder: Path) -> Path:
        named = {rename(key): tensor.clone() for key, tensor in load_file(HIGH).items()}
        if alpha is not None:
            modules = {re.sub(r"\.lora_.*", "", key) for key in named}
            named |= {f"{module}.alpha": torch.tensor(alpha) for module in modules}
        save_file(named, folder / "lora.safetensors")
        return folder / "lora.safetensors"

    return write


def down_up(key: str) -> str:
    """A key with the sides' other names."""
    return key.replace("lora_A.default", "lora_down").replace("lora_B.default", "lora_up")


def diffusers_key(key: str) -> str:
    """A key as diffusers' own trainers write it."""
    module, side = re.fullmatch(r"(.+)\.lora_(A|B)\.default\.weight", key).groups()  # type: ignore[union-attr]
    return f"transformer.{from_native(module + '.weight').removesuffix('.weight')}.lora_{side}.weight"


def kohya_key(key: str) -> str:
    """A key as kohya's and musubi's trainers write it."""
    module, _, side = down_up(key).removesuffix(".weight").rpartition(".")
    return f"lora_unet_{module.replace('.', '_')}.{side}.weight"


CONVENTIONS = {
    "kohya": convention(kohya_key, alpha=RANK),
    "DiffSynth": convention(lambda key: "pipe.dit." + key),
    "unet": convention(lambda key: f"unet.{down_up(key)}"),
    "torch.compile": convention(lambda key: "diffusion_model._orig_mod." + key.replace(".default", "")),
    "kohya, diffusers' names": convention(
        lambda key: kohya_key(
            diffusers_key(key).removeprefix("transformer.").replace(".weight", ".default.weight")
        )
    ),
    "as it is": convention(lambda key: key),
    "without default": convention(lambda key: key.replace(".default", "")),
    "ComfyUI": convention(lambda key: "diffusion_model." + key.replace(".default", "")),
    "down and up": convention(down_up, alpha=RANK),
    "LightX2V": convention(lambda key: f"diffusion_model.{down_up(key)}", alpha=float(RANK)),
    "diffusers": convention(diffusers_key),
    "PEFT": convention(lambda key: "base_model.model." + key),
}


def merged(uses: list[LoraUse], place: Placement = F32) -> dict[str, Tensor]:
    """The weights that some LoRAs change, merged."""
    entries = read_transformer(support.find_models(support.MODELS).high).entries
    recipes = lora.recipes(uses, SHAPES)
    return {name: place.take_merged(name, entries[name], recipe)[name] for name, recipe in recipes.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are the same bits under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_key_convention_merges_to_the_same_bits(name: str, tmp_path: Path) -> None:
    file = CONVENTIONS[name](tmp_path)
    assert same(merged([LoraUse(file, 1.0, whole=True)]), merged([LoraUse(HIGH, 1.0, whole=True)]))


def test_alpha_scales_by_alpha_over_rank(tmp_path: Path) -> None:
    file = convention(lambda key: key, alpha=2 * RANK)(tmp_path)
    assert same(merged([LoraUse(file, 0.5)]), merged([LoraUse(HIGH, 1.0)]))


@pytest.mark.parametrize("place", [F32, BF16], ids=["float32", "bfloat16"])
def test_merged_in_float32_and_rounded_once(place: Placement) -> None:
    base, high, pro = load_native("high"), load_file(HIGH), load_file(PRO)
    for name, got in merged([LoraUse(HIGH, 1.0), LoraUse(PRO, 0.7)], place).items():
        key = next(key for key in base if from_native(key) == name)
        wanted = base[key].clone()
        for factors, strength in ((high, 1.0), (pro, 0.7)):
            sides = [factors[key.replace(".weight", f".lora_{side}.default.weight")] for side in "BA"]
            wanted += strength * (sides[0] @ sides[1])
        wanted = wanted.to(place.dtype)
        assert got.dtype == place.dtype
        # Adding in one pass or in two may round the last bit of float32 differently, and no more.
        assert (got.float() - wanted.float()).abs().max() <= (2**-8 if place is BF16 else 1e-6)
        assert (got != wanted).float().mean() < (0.001 if place is BF16 else 1)


def load_native(expert: str) -> dict[str, Tensor]:
    """An expert's weights as they are stored."""
    state: dict[str, Tensor] = {}
    for shard in sorted((support.MODELS / support.EXPERT_FOLDERS[expert]).glob("*.safetensors")):
        state |= load_file(shard)
    return state


def test_whole_differences_are_added_times_the_strength(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {
        "blocks.0.self_attn.q": "blocks.0.attn1.to_q.weight",
        "blocks.1.cross_attn.norm_k": "blocks.1.attn2.norm_k.weight",
        "blocks.1.norm3": "blocks.1.norm2.weight",
        "patch_embedding": "patch_embedding.weight",
        "blocks.0.modulation": "blocks.0.scale_shift_table",
    }
    base = read_transformer(EXPERT).entries
    stored = {f"diffusion_model.{key}.diff": torch.randn(SHAPES[name]) for key, name in given.items()}
    stored["diffusion_model.blocks.0.ffn.2.diff_b"] = torch.randn(96)
    file = tmp_path / "lora.safetensors"
    save_file(stored, file)
    found = merged([LoraUse(file, 0.5)])
    wanted = {
        name: base[name].read() + 0.5 * stored[f"diffusion_model.{key}.diff"] for key, name in given.items()
    }
    bias = "blocks.0.ffn.net.2.bias"
    wanted[bias] = base[bias].read() + 0.5 * stored["diffusion_model.blocks.0.ffn.2.diff_b"]
    assert same(found, wanted)


def test_factors_and_a_difference_of_one_weight_are_both_added(tmp_path: Path) -> None:
    key, name = "blocks.0.self_attn.q", "blocks.0.attn1.to_q.weight"
    file = tmp_path / "lora.safetensors"
    factors = load_file(HIGH)
    save_file({**factors, f"{key}.diff": torch.ones(96, 96)}, file)
    found, plain = merged([LoraUse(file, 1.0)]), merged([LoraUse(HIGH, 1.0)])
    assert torch.equal(found[name], plain[name] + 1)


def test_layers_of_the_image_branch_are_skipped_and_noted(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    keys = ("blocks.0.cross_attn.k_img.lora_down.weight", "diffusion_model.img_emb.proj.1.diff")
    save_file({**load_file(HIGH), **{key: torch.zeros(4, 96) for key in keys}}, file)
    assert same(merged([LoraUse(file, 1.0)]), merged([LoraUse(HIGH, 1.0)]))
    (note,) = lora.check_extra(file, EXPERTS, lambda _: "0" * 64)
    assert note == f"{file}: 2 tensors for the image branch of Wan 2.1's model are skipped: Wan 2.2 has none"


@pytest.mark.parametrize(
    "change",
    [
        lambda key, tensor: (key, tensor),
        lambda key, tensor: (f"diffusion_model.{key}", tensor.half()),
        lambda key, tensor: (kohya_key(key), tensor.bfloat16()),
        lambda key, tensor: (diffusers_key(key), tensor),
    ],
    ids=["renamed", "kijai's", "kohya", "diffusers"],
)
def test_svi_s_own_lora_is_known_by_its_numbers(
    change: Callable[[str, Tensor], tuple[str, Tensor]], tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    save_file(dict(change(key, tensor) for key, tensor in load_file(HIGH).items()), file)
    low = support.lora_file(support.MODELS, "low")
    assert lora.check_extra(file, EXPERTS, lambda _: "0" * 64, [PRO, low]) == []
    with pytest.raises(InputError, match=r"holds the same tensors as .*so take it out of loras"):
        lora.check_extra(file, EXPERTS, lambda _: "0" * 64, [PRO, low, HIGH])


KEY = "blocks.1.ffn.0.lora_{}.default.weight"
FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "unknown layer": (
        lambda t: t | {"blocks.7.ffn.0.lora_A.weight": torch.zeros(4, 96)},
        "blocks.7.ffn.0.lora_A.weight belongs to no weight",
    ),
    "unknown kind": (
        lambda t: t | {"blocks.0.self_attn.norm_q.diff_c": torch.zeros(96)},
        "norm_q.diff_c belongs to no weight",
    ),
    "a difference of another shape": (
        lambda t: t | {"blocks.0.self_attn.norm_q.diff": torch.zeros(95)},
        "blocks.0.self_attn.norm_q.diff [95] does not fit blocks.0.attn1.norm_q.weight [96]",
    ),
    "DoRA": (lambda t: t | {"blocks.0.self_attn.q.dora_scale": torch.zeros(96, 1)}, "is a DoRA (blocks.0"),
    "LoKr": (lambda t: {"blocks.0.self_attn.q.lokr_w1": torch.zeros(4, 4)}, "is a LoKr (blocks.0"),
    "LoHa": (lambda t: {"blocks.0.self_attn.q.hada_w1_a": torch.zeros(4, 4)}, "is a LoHa (blocks.0"),
    "fp8": (
        lambda t: {key: each.to(torch.float8_e4m3fn) for key, each in t.items()},
        "is stored as F8_E4M3; LoRAs are read in 16 or 32 bits",
    ),
    "another model": (
        lambda t: {f"down_blocks.{key}": tensor for key, tensor in t.items()},
        "belongs to no weight of the expert",
    ),
    "lone alpha": (
        lambda t: t | {"blocks.0.modulation.alpha": torch.tensor(1.0)},
        "blocks.0.modulation.alpha has no lora_A",
    ),
    "no lora_B": (lambda t: without(t, KEY.format("B")), "has no lora_B"),
    "no lora_A": (lambda t: without(t, KEY.format("A")), "has no lora_A"),
    "a layer left out": (
        lambda t: without(without(t, KEY.format("A")), KEY.format("B")),
        "nothing for blocks.1.ffn.net.0.proj.weight: the file is not whole",
    ),
    "wrong width": (lambda t: t | {KEY.format("A"): torch.zeros(4, 95)}, "does not fit blocks.1.ffn.net.0"),
    "wrong rank": (lambda t: t | {KEY.format("A"): torch.zeros(5, 96)}, "does not fit blocks.1.ffn.net.0"),
    "wrong dimensions": (lambda t: t | {KEY.format("A"): torch.zeros(4, 96, 1)}, "does not fit"),
    "twice": (
        lambda t: t | {"diffusion_model.blocks.1.ffn.0.lora_down.weight": torch.zeros(4, 96)},
        "are for the same weight",
    ),
    "alpha of two": (lambda t: t | {"blocks.1.ffn.0.alpha": torch.zeros(2)}, "is not one number"),
    "alpha NaN": (lambda t: t | {"blocks.1.ffn.0.alpha": torch.tensor(float("nan"))}, "alpha is nan"),
    "integers": (lambda t: t | {KEY.format("A"): torch.zeros(4, 96, dtype=torch.int8)}, "stored as I8"),
    "empty": (lambda _: {}, "the file is not whole"),
}


def without(t: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    """All tensors but one."""
    return {name: tensor for name, tensor in t.items() if name != key}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_named(tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    file = tmp_path / "lora.safetensors"
    save_file(change(load_file(HIGH)), file)
    with pytest.raises(InputError) as caught:
        lora.recipes([LoraUse(file, 1.0, whole=True)], SHAPES)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_are_no_numbers_are_named(tmp_path: Path, side: str, value: float) -> None:
    key = KEY.format(side)
    file = tmp_path / "lora.safetensors"
    shutil.copy(HIGH, file)
    support.change_file(file, lambda t: t | {key: t[key].index_fill(1, torch.tensor(2), value)})
    with pytest.raises(InputError, match=re.escape(f"{key} holds NaN or Inf")):
        merged([LoraUse(file, 1.0)])


def test_an_extra_lora_may_leave_layers_out_but_not_be_empty(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({key: t for key, t in load_file(HIGH).items() if "blocks.0.self_attn.q" in key}, file)
    assert list(lora.recipes([LoraUse(file, 1.0)], SHAPES)) == ["blocks.0.attn1.to_q.weight"]
    save_file({}, file)
    with pytest.raises(InputError, match="holds no LoRA weights"):
        lora.recipes([LoraUse(file, 1.0)], SHAPES)


def test_a_header_of_countless_tensors_is_not_parsed(tmp_path: Path) -> None:
    """Fifty bytes describe a tensor, and a kilobyte holds what is known of it."""
    file = tmp_path / "lora.safetensors"
    header = b"{" + b" " * (8 * 2**20) + b"}"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="its header has 8388610 bytes, more than any model's"):
        lora.recipes([LoraUse(file, 1.0)], SHAPES)


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number(strength: float) -> None:
    with pytest.raises(InputError, match="is not a number"):
        lora.recipes([LoraUse(HIGH, strength)], SHAPES)


def test_the_problems_of_all_files_come_together(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.safetensors", "two.safetensors", "three.safetensors")]
    save_file({"x": torch.zeros(1)}, files[0])
    files[1].write_bytes(b"PK\x03\x04 a pickle")
    experts = Experts(support.find_models(support.MODELS), F32, "torch-flash")
    with pytest.raises(InputError) as caught:
        experts.set_loras(
            {"high": [LoraUse(files[0], 1.0), LoraUse(files[1], 1.0)], "low": [LoraUse(files[2], 1.0)]}
        )
    assert all(file.name in str(caught.value) for file in files)


def weights(experts: Experts, expert: Expert = "high") -> dict[str, Tensor]:
    """A copy of an expert's weights."""
    return {name: tensor.clone() for name, tensor in experts.use(expert).named_parameters()}


def equip(experts: Experts, *uses: LoraUse) -> None:
    """The same LoRAs for both experts."""
    experts.set_loras(dict.fromkeys(EXPERTS, uses))


@pytest.mark.parametrize("place", [F32, BF16], ids=["float32", "bfloat16"])
def test_switching_sets_comes_back_to_the_same_bits(place: Placement, tmp_path: Path) -> None:
    partial = tmp_path / "style.safetensors"
    save_file({key: t.clone() for key, t in load_file(PRO).items() if "blocks.1.cross_attn" in key}, partial)
    sets = [
        (),
        (LoraUse(HIGH, 1.0),),
        (LoraUse(HIGH, 1.0), LoraUse(partial, 0.8)),
        (LoraUse(PRO, 1.0),),
        (LoraUse(HIGH, 0.5),),
    ]
    fresh = []
    for uses in sets:
        experts = Experts(support.find_models(support.MODELS), place, "torch-flash")
        equip(experts, *uses)
        fresh.append(weights(experts))
    assert not any(same(fresh[0], other) for other in fresh[1:])
    experts = Experts(support.find_models(support.MODELS), place, "torch-flash")
    for index in (1, 2, 1, 0, 3, 2, 4, 0, 4, 1):
        equip(experts, *sets[index])
        assert same(weights(experts), fresh[index])


def test_switching_makes_only_what_changed_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    style = tmp_path / "style.safetensors"
    save_file({key: t.clone() for key, t in load_file(PRO).items() if "blocks.1.ffn.0" in key}, style)
    experts = Experts(support.find_models(support.MODELS), F32, "torch-flash")
    equip(experts, LoraUse(HIGH, 1.0))
    model = experts.use("high")
    read: list[str] = []
    original = tensors.StoredTensor.read

    def noted(entry: tensors.StoredTensor, device: torch.device | None = None) -> Tensor:
        read.append(entry.key)
        return original(entry, device)

    monkeypatch.setattr(tensors.StoredTensor, "read", noted)
    equip(experts, LoraUse(HIGH, 1.0))
    assert experts.use("high") is model
    assert read == []
    equip(experts, LoraUse(HIGH, 1.0), LoraUse(style, 1.0))
    assert experts.use("high") is model
    assert set(read) == {"blocks.1.ffn.0.weight", KEY.format("A"), KEY.format("B")}


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    shutil.copy(HIGH, file)
    experts = Experts(support.find_models(support.MODELS), F32, "torch-flash")
    equip(experts, LoraUse(file, 1.0))
    before = weights(experts)
    shutil.copy(PRO, file)
    equip(experts, LoraUse(file, 1.0))
    assert not same(weights(experts), before)


def test_strength_zero_changes_nothing() -> None:
    assert lora.recipes([LoraUse(HIGH, 0.0)], SHAPES) == {}


def test_a_failed_merge_leaves_no_half_merged_expert(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    shutil.copy(PRO, bad)
    support.change_file(bad, lambda t: t | {KEY.format("A"): t[KEY.format("A")] * float("nan")})
    experts = Experts(support.find_models(support.MODELS), F32, "torch-flash")
    equip(experts, LoraUse(HIGH, 1.0))
    before = weights(experts)
    equip(experts, LoraUse(bad, 1.0))
    with pytest.raises(InputError, match="holds NaN"):
        experts.use("high")
    equip(experts, LoraUse(HIGH, 1.0))
    assert same(weights(experts), before)


def test_holding_one_expert_at_a_time_makes_the_same_weights() -> None:
    both, one = (
        Experts(support.find_models(support.MODELS), F32, "torch-flash", choice)
        for choice in (MemoryPlan("resident"), MemoryPlan("offload", keep=False))
    )
    for experts in (both, one):
        equip(experts, LoraUse(HIGH, 1.0))
    for expert in ("high", "low", "high"):
        assert same(weights(both, expert), weights(one, expert))
        assert len(one.held) == 1
    assert both.held == {"high", "low"}
