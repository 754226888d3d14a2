"""`models list` and `models check`: what is there, what can be rendered, and every way for it to be wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import svi_formats
import svi_support as support
import torch

from svi_story.engines.svi.weights import catalogue

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Run = Callable[..., Ended]

ROOT = Path("models")
HIGH, LOW = (support.EXPERT_FOLDERS[expert] for expert in ("high", "low"))
SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"


@pytest.fixture(autouse=True)
def models(own_ground: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny weights, where they may be changed."""
    monkeypatch.delenv("SVI_STORY_MODELS", raising=False)
    return Path(shutil.copytree(support.MODELS, ROOT))


def listed(svi_story: Run, *words: object) -> dict[str, Any]:
    """What `models list` tells, by part."""
    ended = svi_story("models", "list", "--json", *words)
    assert ended.code == 0
    told = json.loads(ended.out)
    return {**{part["part"]: part["state"] for part in told["parts"]}, **told["variants"]}


def problems(svi_story: Run, *words: object, code: int = 1) -> str:
    """What `models check` finds wrong."""
    ended = svi_story("models", "check", *words)
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    return str(ended.err)


# --- list


def test_list_tells_what_is_there(svi_story: Run) -> None:
    told = listed(svi_story)
    assert told.pop("distill") == "missing"
    assert set(told.values()) == {"ready", True}
    ended = svi_story("models", "list")
    words = " ".join(ended.out.split())
    assert "high-noise expert plain F32 1.3 MB used models/Wan-AI/Wan2.2-I2V-A14B/high_noise_model/" in words
    assert "SVI 2.0-pro: ready" in ended.err


def test_list_of_nothing_is_a_list(svi_story: Run) -> None:
    told = listed(svi_story, "--models", "nowhere")
    assert set(told.values()) == {"missing", False}
    assert not Path("nowhere").exists()


def test_the_environment_names_the_folder(svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ROOT.rename("elsewhere")
    assert listed(svi_story)["2.0"] is False
    monkeypatch.setenv("SVI_STORY_MODELS", "elsewhere")
    assert listed(svi_story)["2.0"] is True


def test_list_knows_what_is_incomplete_or_broken(svi_story: Run) -> None:
    (ROOT / HIGH / SHARD).unlink()
    vae = ROOT / support.VAE_FILE
    vae.write_bytes(vae.read_bytes()[:-1])
    support.lora_file(ROOT, "low", "2.0-pro").unlink()
    told = listed(svi_story)
    assert (told["high"], told["vae"], told["svi-2.0-pro"]) == ("incomplete", "broken", "incomplete")
    assert (told["low"], told["2.0"], told["2.0-pro"]) == ("ready", False, False)


def test_the_fast_presets_need_the_lightx2v_pair(svi_story: Run) -> None:
    folder = ROOT / catalogue.DISTILL.folder / "Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1"
    folder.mkdir(parents=True)
    told = svi_story("models", "list").err
    assert "presets fast and draft: not found: the LightX2V LoRA" in told
    assert "svi-story models download --preset fast" in told
    for expert in ("high", "low"):
        shutil.copy(support.lora_file(ROOT, expert), folder / f"{expert}_noise_model.safetensors")
    assert "presets fast and draft: ready" in svi_story("models", "list").err
    assert problems(svi_story, code=0)


def test_a_diffusers_folder_is_known(svi_story: Run) -> None:
    (ROOT / "transformer").mkdir()
    (ROOT / HIGH).rename(ROOT / "transformer_high")
    (ROOT / "transformer").rmdir()
    (ROOT / "transformer_high").rename(ROOT / "transformer")
    assert listed(svi_story)["high"] == "ready"
    assert "models/transformer" in svi_story("models", "list").out


def test_listing_needs_no_torch(models: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'transformers', 'huggingface_hub'): sys.modules[name] = None\n"
        "from svi_story.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "models", "list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["variants"] == {"2.0": True, "2.0-pro": True}


def test_settings_choose_the_folders_and_the_file_of_a_role(svi_story: Run) -> None:
    ROOT.rename("elsewhere")
    shutil.copytree(Path("elsewhere") / LOW, "mine/some_model")
    settings = 'models = ["elsewhere", "mine"]\n[weights]\nhigh = "mine/some_model"\n'
    Path("svi-story.toml").write_text(settings, "utf-8")
    found = json.loads(svi_story("models", "list", "--json").out)
    assert [Path(folder).name for folder in found["models"]] == ["elsewhere", "mine"]
    (high,) = (each for each in found["files"] if each["used_as"] == ["high"])
    assert {Path(file).parent.name for file in high["files"]} == {"some_model"}
    Path("svi-story.toml").write_text(settings.replace("high =", "hihg ="), "utf-8")
    ended = svi_story("models", "list")
    assert ended.code == 2
    assert "weights: hihg is not a role; roles are high, low, vae" in ended.err


def test_a_comfyui_folder_with_several_precisions_of_everything(svi_story: Run, tmp_path: Path) -> None:
    """The most precise file of each role is used; what cannot be used is named with the reason."""
    comfy = tmp_path / "ComfyUI/models"
    unet = comfy / "diffusion_models"
    unet.mkdir(parents=True)
    for expert in ("high", "low"):
        plain = svi_formats.expert(expert)
        svi_formats.FORMATS["ComfyUI fp8_scaled"](unet / f"wan2.2_i2v_{expert}_noise_14B_fp8_scaled", plain)
        svi_formats.FORMATS["Q8_0"](unet / f"Wan2.2-I2V-A14B-{expert.title()}Noise-Q8_0", plain)
    fp8 = unet / "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors"
    support.change_file(fp8, lambda t: {key: each for key, each in t.items() if "0.ffn.0.scale" not in key})
    t2v = unet / "wan2.2_t2v_high_noise_14B_fp16.safetensors"
    svi_formats.rounded(torch.float16)(t2v.with_suffix(""), svi_formats.expert("high"))
    name = "patch_embedding.weight"
    support.change_file(t2v, lambda t: t | {name: t[name][:, :16]})
    for folder in ("vae", "text_encoders"):
        (comfy / folder).mkdir()
    shutil.copy(ROOT / support.VAE_FILE, comfy / "vae/wan_2.1_vae.safetensors")
    svi_formats.fp8("scale_weight", marker=0)(
        comfy / "text_encoders/umt5_xxl_fp8", svi_formats.text_encoder()
    )
    found = json.loads(svi_story("models", "list", "--models", comfy.parent, "--json").out)
    files = {Path(each["files"][0]).name: each for each in found["files"]}
    assert files["Wan2.2-I2V-A14B-HighNoise-Q8_0.gguf"]["used_as"] == ["high"]
    assert files["Wan2.2-I2V-A14B-LowNoise-Q8_0.gguf"]["precision"] == "Q8_0"
    low = files["wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"]
    assert (low["format"], low["precision"]) == ("fp8, scales per tensor", "F8_E4M3")
    assert (low["usable"], low["used_as"]) == (True, [])
    assert not files[fp8.name]["usable"]
    assert "blocks.0.ffn.0.weight is fp8 without a scale" in files[fp8.name]["problems"][0]
    assert "takes 16 channels" in files[t2v.name]["problems"][0]
    assert files["umt5_xxl_fp8.safetensors"]["used_as"] == ["text_encoder"]
    ended = svi_story("models", "list", "--models", comfy.parent)
    assert "low-noise expert: " in ended.err
    assert "Q8_0) is used, the most precise of 2" in ended.err
    assert "SVI 2.0: not found: the tokenizer, the SVI 2.0 LoRA of the high-noise expert" in ended.err
    told = problems(svi_story, "--models", comfy.parent, "--models", ROOT, code=0)
    assert "note: " in told
    assert "takes 16 channels" in told


# --- check


def test_check_of_the_tiny_weights_is_silent_about_problems(svi_story: Run) -> None:
    told = problems(svi_story, code=0)
    assert "13 files checked, 0 problems" in told
    assert told.count("not known to be the official") == 4
    found = json.loads(svi_story("models", "check", "--variant", "2.0", "--json").out)
    assert len(found["files"]) == 11
    digests = {Path(each["file"]).name: each["sha256"] for each in found["files"]}
    assert digests["tokenizer.json"].startswith("3fc0e971")
    assert found["problems"] == []


def test_check_of_nothing_names_all_that_is_missing(svi_story: Run) -> None:
    told = problems(svi_story, "--models", "nowhere")
    for what in ("high-noise expert", "low-noise expert", "VAE", "text encoder", "tokenizer", "SVI 2.0 LoRA"):
        assert what in told
    assert "Pro" not in told


def test_a_variant_that_is_not_there_is_wrong_only_when_asked_for(svi_story: Run) -> None:
    for expert in ("high", "low"):
        support.lora_file(ROOT, expert, "2.0-pro").unlink()
    assert problems(svi_story, code=0)
    assert "SVI 2.0-pro LoRA of the high-noise expert" in problems(svi_story, "--variant", "2.0-pro")
    assert svi_story("models", "check", "--variant", "3").code == 2


def test_a_half_pair_is_wrong(svi_story: Run) -> None:
    support.lora_file(ROOT, "high", "2.0-pro").unlink()
    assert "not found: the SVI 2.0-pro LoRA of the high-noise expert" in problems(svi_story)


def test_a_missing_shard_is_named(svi_story: Run) -> None:
    (ROOT / LOW / SHARD).unlink()
    assert f"{ROOT / LOW / SHARD}: not found: a part of a model" in problems(svi_story)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
@pytest.mark.parametrize("name", [HIGH / SHARD, support.VAE_FILE, support.TEXT_FILE])
def test_a_file_that_is_cut_short_is_named(svi_story: Run, name: Path, size: int) -> None:
    file = ROOT / name
    file.write_bytes(file.read_bytes()[:size])
    assert f"{file}: not a safetensors file, or cut short" in problems(svi_story)


def test_a_pickle_under_the_name_is_named(svi_story: Run) -> None:
    torch.save({"weight": torch.zeros(3)}, ROOT / support.VAE_FILE)
    assert "not a safetensors file" in problems(svi_story)


def test_swapped_loras_are_named(svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unofficial files are known by nothing but their names; so the official hashes are planted."""
    from svi_story.engines.svi.identity import sha256_of
    from svi_story.engines.svi.weights import lora

    high, low = (support.lora_file(ROOT, expert, "2.0-pro") for expert in ("high", "low"))
    for file, role in ((high, "high"), (low, "low")):
        digest = sha256_of(file)
        expert: Any = role
        monkeypatch.setitem(lora.OFFICIAL, (digest[:8], digest[-4:]), lora.LoraRole("2.0-pro", expert))
    found = json.loads(svi_story("models", "check", "--json").out)
    known = {each["file"]: each["known"] for each in found["files"]}
    assert known[str(high)] == "SVI 2.0-pro LoRA of the high-noise expert"
    high.rename("aside")
    low.rename(high)
    Path("aside").rename(low)
    assert problems(svi_story).count("swap them back") == 2
    shutil.copy(low, support.lora_file(ROOT, "high", "2.0"))
    assert "is the SVI 2.0-pro LoRA of the high-noise expert, not the SVI 2.0 LoRA" in problems(svi_story)


def test_one_lora_under_two_names_is_noted(svi_story: Run) -> None:
    shutil.copy(support.lora_file(ROOT, "high"), support.lora_file(ROOT, "high", "2.0-pro"))
    assert "the same file as" in problems(svi_story, code=0)


def test_one_expert_twice_is_wrong(svi_story: Run) -> None:
    shutil.copy(ROOT / HIGH / SHARD, ROOT / LOW / SHARD)
    assert f"{ROOT / HIGH / SHARD}: is the same file as {ROOT / LOW / SHARD}" in problems(svi_story)


def test_a_missing_tensor_is_named(svi_story: Run) -> None:
    support.change_file(ROOT / HIGH / SHARD, lambda t: {k: v for k, v in t.items() if k != "head.head.bias"})
    assert "proj_out.bias is missing" in problems(svi_story)


def test_experts_of_two_models_are_told_apart(svi_story: Run) -> None:
    def shorten(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: tensor for key, tensor in tensors.items() if not key.startswith("blocks.1.")}

    for shard in (ROOT / LOW).glob("*.safetensors"):
        support.change_file(shard, shorten)
    assert "they are not of one model" in problems(svi_story)


@pytest.mark.parametrize("name", [support.VAE_FILE, support.TEXT_FILE])
def test_a_surplus_tensor_is_named(svi_story: Run, name: Path) -> None:
    support.change_file(ROOT / name, lambda t: t | {"extra.weight": torch.zeros(2)})
    assert "extra.weight is not known to the model" in problems(svi_story)


def test_a_lora_that_does_not_fit_is_named(svi_story: Run) -> None:
    file = support.lora_file(ROOT, "low")
    support.change_file(file, lambda t: {k: v[..., :-1] if "lora_A" in k else v for k, v in t.items()})
    assert "does not fit" in problems(svi_story)


def test_a_lora_that_is_not_whole_is_named(svi_story: Run) -> None:
    file = support.lora_file(ROOT, "low")
    support.change_file(file, lambda t: {k: v for k, v in t.items() if not k.startswith("blocks.1.ffn")})
    assert "the file is not whole" in problems(svi_story)


@pytest.mark.parametrize(
    "name", [LOW / SHARD, support.VAE_FILE, support.TEXT_FILE, support.lora_file(Path(), "high")]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_named(svi_story: Run, name: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values())).view(-1)[-1] = value

    support.change_file(ROOT / name, spoil)
    assert f"{ROOT / name}: " in problems(svi_story)
    assert "holds NaN or Inf" in problems(svi_story)


def test_a_file_that_cannot_be_read_is_named(svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).name == "tokenizer.json":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    assert "tokenizer.json: cannot be read: Permission denied" in problems(svi_story, code=2)


def test_without_torch_what_was_not_checked_is_noted(svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svi_story.engines.svi.weights.inspection.find_spec", lambda name: None)
    assert "note: shapes and numbers were not checked" in problems(svi_story, code=0)
