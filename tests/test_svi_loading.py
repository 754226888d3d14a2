"""Models load strictly, in any size, from either layout; each computes what the reference computes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import svi_support as support
import torch
from safetensors.torch import load_file, save_file

from svi_story.engines.svi import vae
from svi_story.engines.svi.weights import architecture, loading, tensors
from svi_story.engines.svi.weights.catalogue import ModelFiles
from svi_story.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers import WanTransformer3DModel
    from torch import Tensor

    from svi_story.engines.svi.weights.candidates import Expert

F32 = loading.Placement(support.CPU, torch.float32)
SHARDS = tuple(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))


def load_expert(files: ModelFiles, place: loading.Placement = F32) -> WanTransformer3DModel:
    """An expert without LoRAs."""
    blueprint = loading.read_transformer(files)
    return loading.load_transformer(blueprint, place, place.take).model


def forward(model: WanTransformer3DModel) -> Tensor:
    """One pass on the reference inputs."""
    given = support.units()
    x = torch.cat([given["dit/x"], given["dit/y"]], dim=1)
    with torch.no_grad():
        out: Tensor = model(x, given["dit/timestep"], given["dit/context"], return_dict=False)[0]
    return out


@pytest.mark.parametrize("expert", ["high", "low"])
def test_experts_compute_what_the_reference_computes(expert: Expert) -> None:
    model = load_expert(support.find_models(support.MODELS).expert(expert))
    assert (forward(model) - support.units()[f"dit/{expert}"]).abs().max() < 1e-4


def test_the_vae_computes_what_the_reference_computes() -> None:
    model = loading.load_vae(support.find_models(support.MODELS).vae, F32)
    given = support.units()
    encoded = vae.encode(model, given["vae/video"][None])
    assert (encoded - given["vae/encoded"]).abs().max() < 1e-4
    assert (vae.decode(model, given["vae/latents"]) - given["vae/decoded"]).abs().max() < 1e-4


def test_frames_are_truncated_not_rounded() -> None:
    values = torch.tensor([-2.0, -1.0, -0.9961, 0.0, 0.9999, 1.0, 3.0])
    video = values[None, None, None, None].expand(1, 3, 1, 1, 7)
    assert vae.to_frames(video)[0, 0, :, 0].tolist() == [0, 0, 0, 127, 254, 255, 255]


@pytest.fixture(scope="module")
def diffusers_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference models as diffusers and transformers save them."""
    root = tmp_path_factory.mktemp("diffusers")
    found = support.find_models(support.MODELS)
    load_expert(found.high).save_pretrained(root / "transformer")
    load_expert(found.low).save_pretrained(root / "transformer_2", max_shard_size="500KB")
    loading.load_vae(found.vae, F32).save_pretrained(root / "vae")
    loading.load_text_encoder(found.text_encoder, F32).save_pretrained(root / "text_encoder")
    shutil.copytree(found.tokenizer.parent, root / "tokenizer")
    shutil.copytree(support.MODELS / support.LORAS, root / support.LORAS)
    return root


def test_both_layouts_make_the_same_frames(diffusers_root: Path) -> None:
    one = support.segment(settings=support.sampler(steps=2), frames=5)
    made = []
    for root in (support.MODELS, diffusers_root):
        with support.engine(root) as svi:
            made.append(support.render(svi, [one])[0])
    assert np.array_equal(made[0].latents, made[1].latents)
    assert np.array_equal(made[0].frames, made[1].frames)


def test_latent_statistics_come_from_the_config(diffusers_root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(diffusers_root / "vae", tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["latents_mean"] = [float(i) for i in range(16)]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    files = ModelFiles((folder / "diffusion_pytorch_model.safetensors",), folder / "config.json")
    assert loading.load_vae(files, F32).config.latents_mean[3] == 3.0
    config["latents_mean"] = [0.0] * 15
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(InputError, match="latents_mean: expected 16 numbers"):
        loading.load_vae(files, F32)


@pytest.mark.parametrize(
    ("heads", "size", "layers", "ffn", "text", "freq"),
    [(1, 128, 1, 40, 16, 32), (3, 20, 3, 56, 24, 64), (2, 128, 2, 64, 8, 16)],
)
def test_experts_of_any_size(
    tmp_path: Path, heads: int, size: int, layers: int, ffn: int, text: int, freq: int
) -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(heads)
    model = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=size,
        in_channels=36,
        num_layers=layers,
        ffn_dim=ffn,
        text_dim=text,
        freq_dim=freq,
    ).eval()
    file = tmp_path / "x.safetensors"
    save_file({native_name(name): tensor for name, tensor in model.state_dict().items()}, file)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"num_heads": heads}), "utf-8")
    loaded = load_expert(ModelFiles((file,), None if size == 128 else config))
    x, y = torch.randn(1, 36, 2, 4, 6), torch.randn(1, 512, text)
    with torch.no_grad():
        call = {"timestep": torch.tensor([900.0]), "encoder_hidden_states": y, "return_dict": False}
        assert torch.equal(loaded(x, **call)[0], model(x, **call)[0])


def native_name(name: str) -> str:
    """Diffusers' name of an expert's weight -> the Wan authors' name."""
    pairs = [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        (".to_out.0.", ".o."),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        (".norm2.", ".norm3."),
        ("proj_out", "head.head"),
    ]
    for ours, native in pairs:
        name = name.replace(ours, native)
    name = "head.modulation" if name == "scale_shift_table" else name
    return name.replace("scale_shift_table", "modulation")


@pytest.mark.parametrize("config", ['{"num_heads": 5}', '{"num_heads": 0}', '{"num_heads": "4"}', "{}"])
def test_impossible_heads_are_an_error(tmp_path: Path, config: str) -> None:
    root = support.copy_models(tmp_path)
    folder = root / support.EXPERT_FOLDERS["high"]
    (folder / "config.json").write_text(config, "utf-8")
    with pytest.raises(InputError, match=r"heads do not divide a width of 96"):
        loading.read_transformer(support.find_models(root).high)


@pytest.mark.parametrize("config", ["", "[]", "\xff", "[" * 100_000])
def test_a_broken_config_is_an_error(tmp_path: Path, config: str) -> None:
    root = support.copy_models(tmp_path)
    (root / support.EXPERT_FOLDERS["high"] / "config.json").write_text(config, "latin-1")
    with pytest.raises(InputError, match=r"config\.json"):
        loading.read_transformer(support.find_models(root).high)


def test_a_text_to_video_expert_is_refused(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    shard = root / support.EXPERT_FOLDERS["high"] / SHARDS[1]
    name = "patch_embedding.weight"
    support.change_file(shard, lambda t: {**t, name: t[name][:, :16]})
    with pytest.raises(InputError, match="takes 16 channels, an image-to-video expert 36"):
        loading.read_transformer(support.find_models(root).high)


def replaced(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], str], dict[str, Tensor]]:
    """A fault in one tensor."""
    return lambda tensors, key: {**tensors, key: change(tensors[key])}


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor], str], dict[str, Tensor]], str]] = {
    "missing": (lambda t, key: {k: v for k, v in t.items() if k != key}, "is missing"),
    "surplus": (
        lambda t, key: {**t, "extra.weight": t[key].clone()},
        "extra.weight is not known to the model",
    ),
    "integers": (replaced(lambda w: w.to(torch.int32)), "is stored as I32"),
    "NaN": (replaced(lambda w: w * float("nan")), "holds NaN or Inf"),
    "infinity": (replaced(lambda w: torch.cat([w[1:], w[:1] / 0])), "holds NaN or Inf"),
    "shape": (replaced(lambda w: w[:-1]), "has the shape"),
}
FILES = {
    "expert": (support.EXPERT_FOLDERS["low"] / SHARDS[0], "blocks.1.cross_attn.k.weight"),
    "vae": (support.VAE_FILE, "decoder.middle.0.residual.2.weight"),
    "text": (support.TEXT_FILE, "blocks.1.ffn.fc1.weight"),
}


def load_all(root: Path) -> None:
    """Every model of a folder."""
    found = support.find_models(root)
    loading.load_text_encoder(found.text_encoder, F32)
    loading.load_vae(found.vae, F32)
    load_expert(found.low)


@pytest.mark.parametrize("model", FILES)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_named(tmp_path: Path, model: str, fault: str) -> None:
    root = support.copy_models(tmp_path)
    file, key = FILES[model]
    change, message = FAULTS[fault]

    support.change_file(root / file, lambda t: change(t, key))
    with pytest.raises(InputError) as caught:
        load_all(root)
    assert message in str(caught.value)
    assert file.parent.name in str(caught.value)


@pytest.mark.parametrize("model", FILES)
@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_files_are_named(tmp_path: Path, model: str, keep: int) -> None:
    root = support.copy_models(tmp_path)
    file = root / FILES[model][0]
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a safetensors file, or cut short") as caught:
        load_all(root)
    assert file.name in str(caught.value)


def test_a_file_without_tensors_is_named(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    save_file({}, root / support.VAE_FILE)
    with pytest.raises(InputError, match=r"Wan2\.1_VAE\.safetensors: holds no tensors"):
        load_all(root)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    torch.save({"encoder.conv1.bias": torch.zeros(8)}, root / support.VAE_FILE)
    with pytest.raises(InputError, match="not a safetensors file"):
        load_all(root)


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    folder = root / support.EXPERT_FOLDERS["low"]
    name = "blocks.0.modulation"
    more = load_file(folder / SHARDS[0])[name].clone()
    support.change_file(folder / SHARDS[1], lambda t: t | {name: more})
    with pytest.raises(InputError, match=r"holds blocks.0.modulation, as does"):
        load_all(root)


def test_many_problems_of_a_kind_are_counted(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    file = root / support.VAE_FILE
    support.change_file(file, lambda t: {k: v for k, v in t.items() if "decoder.upsamples.1." not in k})
    support.change_file(file, lambda t: t | {f"more.{i}": torch.zeros(1) for i in range(50)})
    with pytest.raises(InputError, match="and 42 more like that") as caught:
        load_all(root)
    assert len(caught.value.problems) < 20


def test_hostile_key_names_are_only_unknown(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    odd = {"decoder.upsamples.x.residual.0.gamma": torch.zeros(1), "decoder.upsamples.": torch.zeros(1)}
    support.change_file(root / support.VAE_FILE, lambda t: t | odd)
    shard = root / support.EXPERT_FOLDERS["low"] / SHARDS[0]
    more = {"blocks.99999999.x": torch.zeros(1), "motion_encoder.": torch.zeros(1)}
    support.change_file(shard, lambda t: t | more)
    with pytest.raises(InputError, match=r"upsamples\.x"):
        loading.load_vae(support.find_models(root).vae, F32)
    with pytest.raises(InputError, match=r"blocks\.99999999\.x is not known"):
        load_expert(support.find_models(root).low)


def test_weights_are_copies_in_the_models_dtype(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    bf16 = replace(F32, dtype=torch.bfloat16)
    model = load_expert(support.find_models(root).low, bf16)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    shutil.rmtree(root)
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    assert not any(tensor.requires_grad for tensor in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_the_tied_weight_may_be_there_twice(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    file = root / support.TEXT_FILE
    support.change_file(file, lambda t: {architecture.name_text_encoder([key])[key]: t[key] for key in t})
    tied, shared = architecture.TIED
    loading.load_text_encoder(support.find_models(root).text_encoder, F32)
    support.change_file(file, lambda t: {tied if key == shared else key: t[key] for key in t})
    loading.load_text_encoder(support.find_models(root).text_encoder, F32)
    support.change_file(file, lambda t: {shared: t[tied].clone(), **t})
    assert loading.load_text_encoder(support.find_models(root).text_encoder, F32).shared.weight.shape == (
        153,
        32,
    )


@pytest.mark.parametrize("eps", ["1e-6", -1, True])
def test_a_config_is_never_guessed_at(tmp_path: Path, eps: object) -> None:
    root = support.copy_models(tmp_path)
    config = json.dumps({"num_heads": 4, "eps": eps})
    (root / support.EXPERT_FOLDERS["high"] / "config.json").write_text(config, "utf-8")
    with pytest.raises(InputError, match=r"config\.json's eps is .*, not a number above 0"):
        loading.read_transformer(support.find_models(root).high)


def test_umt5_names_of_both_layouts() -> None:
    native = load_file(support.MODELS / support.TEXT_FILE)
    names = architecture.name_text_encoder(native)
    assert architecture.name_text_encoder(names.values()) == {name: name for name in names.values()}
    assert len(set(names.values())) == len(native)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_anywhere_is_seen(dtype: torch.dtype, value: float) -> None:
    good = torch.full((7, 301), 60000.0, dtype=dtype)  # sums overflow float16; the check must not
    assert tensors.is_finite(good)
    assert tensors.is_finite(good[:0])
    for place in (0, 1, 1000, 2106):
        bad = good.clone()
        bad.view(-1)[place] = value
        assert not tensors.is_finite(bad)
