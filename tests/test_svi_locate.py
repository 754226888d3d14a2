"""Weights are found wherever people have them; each role gets the most precise file. No torch in here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from svi_story.engines.svi.identity import sha256_of
from svi_story.engines.svi.weights import catalogue, locate
from svi_story.engines.svi.weights.candidates import classify, expert_named
from svi_story.engines.svi.weights.locate import DISTILL, SVI, ModelFolders, find_weights
from svi_story.errors import InputError

if TYPE_CHECKING:
    from svi_story.engines.svi.weights.catalogue import ModelPaths
    from svi_story.engines.svi.weights.locate import Weights
    from svi_story.enginespec.sampling import Variant

MODELS = Path(__file__).parent / "data" / "svi" / "models"
HIGH = "Wan-AI/Wan2.2-I2V-A14B/high_noise_model"
LOW = "Wan-AI/Wan2.2-I2V-A14B/low_noise_model"
SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"
TOKENIZER = "Wan-AI/Wan2.1-T2V-1.3B/google/umt5-xxl/tokenizer.json"
CONVERTED = MODELS / catalogue.CONVERTED.folder
PAIR = MODELS / "Stable-Video-Infinity/version-2.0"


def weights_in(*folders: Path, **chosen: Path) -> Weights:
    return find_weights(ModelFolders(folders, tuple(chosen.items())))


def find_models(root: Path) -> ModelPaths:
    return weights_in(root).models()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the reference models."""
    return Path(shutil.copytree(MODELS, tmp_path / "models"))


def whole_expert(folder: str) -> dict[str, np.ndarray]:
    """An expert's tensors, from its shards."""
    return {
        k: v for shard in sorted((MODELS / folder).glob("*.safetensors")) for k, v in load_file(shard).items()
    }


def save_as(file: Path, dtype: type = np.float32, folder: str = HIGH) -> Path:
    """An expert in one file, as ComfyUI has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.astype(dtype) for key, tensor in whole_expert(folder).items()}, file)
    return file


@pytest.fixture(scope="module")
def comfy_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("comfy") / "ComfyUI"
    models = root / "models"
    (root / "main.py").parent.mkdir(parents=True)
    (root / "main.py").touch()
    for expert, folder in (("high", HIGH), ("low", LOW)):
        name = f"wan2.2_i2v_{expert}_noise_14B_fp16.safetensors"
        save_as(models / "diffusion_models/split_files/wan" / name, np.float16, folder)
    for category in ("text_encoders", "vae", "loras/svi"):
        (models / category).mkdir(parents=True)
    shutil.copy(CONVERTED / "Wan2.1_VAE.safetensors", models / "vae/wan_2.1_vae.safetensors")
    name = "umt5_xxl_fp16.safetensors"
    shutil.copy(CONVERTED / "models_t5_umt5-xxl-enc-bf16.safetensors", models / "text_encoders" / name)
    for expert in ("high", "low"):
        file = PAIR / f"SVI_Wan2.2-I2V-A14B_{expert}_noise_lora_v2.0_pro.safetensors"
        name = f"SVI_v2_PRO_Wan2.2-I2V-A14B_{expert.upper()}_lora_rank_128_fp16.safetensors"
        shutil.copy(file, models / "loras/svi" / name)
    return root


@pytest.fixture
def comfy(comfy_source: Path, tmp_path: Path) -> Path:
    """A ComfyUI folder with everything but the tokenizer, which ComfyUI keeps in its code."""
    return Path(shutil.copytree(comfy_source, tmp_path / "ComfyUI"))


# --- layouts


def test_upstream_layout() -> None:
    found = find_models(MODELS)
    assert [file.name for file in found.high.weights] == [SHARD.replace("02-of", "01-of"), SHARD]
    assert found.high.config is not None
    assert found.low.weights[0].parent.name == "low_noise_model"
    assert found.vae.weights[0].name == "Wan2.1_VAE.safetensors"
    assert found.tokenizer.parts[-2:] == ("umt5-xxl", "tokenizer.json")


@pytest.mark.parametrize("place", ["", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"])
def test_diffusers_layout(tmp_path: Path, place: str) -> None:
    root = tmp_path / place
    for name, source in (("transformer", HIGH), ("transformer_2", LOW)):
        shutil.copytree(MODELS / source, root / name)
    for name, file in (("vae", "Wan2.1_VAE"), ("text_encoder", "models_t5_umt5-xxl-enc-bf16")):
        (root / name).mkdir()
        shutil.copy(CONVERTED / f"{file}.safetensors", root / name / "model.safetensors")
        (root / name / "config.json").write_text("{}")
    (root / "tokenizer").mkdir()
    shutil.copy(MODELS / TOKENIZER, root / "tokenizer")
    found = find_models(tmp_path)
    assert found.high.weights[0].parent == root / "transformer"
    assert found.low.config == root / "transformer_2" / "config.json"
    assert found.vae.config == root / "vae" / "config.json"


def test_comfyui_s_folder_lacks_only_the_tokenizer(comfy: Path) -> None:
    """Its user is not told to download what is there."""
    for place in (comfy, comfy / "models"):
        with pytest.raises(InputError) as caught:
            find_models(place)
        (problem,) = caught.value.problems
        assert problem.what.startswith("not found: the tokenizer; download what is missing with: ")
        assert problem.what.count("svi-story") == 1
    shutil.copy(MODELS / TOKENIZER, comfy / "models/text_encoders")
    found = weights_in(comfy)
    assert found.models().high.weights[0].name == "wan2.2_i2v_high_noise_14B_fp16.safetensors"
    assert found.models().high.config is None
    assert (
        found.pair(SVI["2.0-pro"]).low.name == "SVI_v2_PRO_Wan2.2-I2V-A14B_LOW_lora_rank_128_fp16.safetensors"
    )


def test_wan2gp_s_folder(tmp_path: Path) -> None:
    for expert, folder in (("high", HIGH), ("low", LOW)):
        save_as(tmp_path / f"wan2.2_image2video_14B_{expert}_mbf16.safetensors", np.float16, folder)
    shutil.copy(CONVERTED / "Wan2.1_VAE.safetensors", tmp_path)
    shutil.copytree(MODELS / "Wan-AI/Wan2.1-T2V-1.3B/google/umt5-xxl", tmp_path / "umt5-xxl")
    shutil.copy(CONVERTED / "models_t5_umt5-xxl-enc-bf16.safetensors", tmp_path / "umt5-xxl")
    found = find_models(tmp_path)
    assert found.low.weights[0].name == "wan2.2_image2video_14B_low_mbf16.safetensors"
    assert found.tokenizer == tmp_path / "umt5-xxl/tokenizer.json"


def test_several_folders_are_searched_as_one(root: Path, tmp_path: Path) -> None:
    for name, part in (("one", HIGH), ("two", LOW)):
        (tmp_path / name).mkdir()
        shutil.move(root / part, tmp_path / name / Path(part).name)
    found = weights_in(tmp_path / "one", tmp_path / "two", root).models()
    assert found.high.weights[0].is_relative_to(tmp_path / "one")
    assert found.low.weights[0].is_relative_to(tmp_path / "two")
    assert found.vae.weights[0].is_relative_to(root)


def test_a_single_file_may_be_named(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / HIGH)
    file = save_as(tmp_path / "elsewhere/my_high.safetensors")
    assert weights_in(file, root).models().high.weights == (file,)


YAML = """
comfyui:
    base_path: {base}
    is_default: true
    checkpoints: models/checkpoints/
    vae: models/vae/
    diffusion_models: |
        models/diffusion_models
        more/unet
    clip: models/text_encoders
"""


@pytest.mark.parametrize("place", ["the file", "its folder", "a models folder beside it"])
def test_extra_model_paths(comfy: Path, tmp_path: Path, place: str) -> None:
    other = tmp_path / "other"
    (other / "models").mkdir(parents=True)
    (other / "extra_model_paths.yaml").write_text(YAML.format(base=comfy))
    shutil.copytree(MODELS / "Wan-AI/Wan2.1-T2V-1.3B", other / "models/Wan-AI/Wan2.1-T2V-1.3B")
    named = {"the file": other / "extra_model_paths.yaml", "its folder": other}.get(place, other / "models")
    found = weights_in(named, other / "models")
    assert found.models().low.weights[0].is_relative_to(comfy)
    assert "svi_pro_high" not in found.used  # the file does not list loras


@pytest.mark.parametrize("text", ["[1, 2", "- a", "comfyui: 3", "a: {base_path: [1]}"])
def test_a_broken_list_of_paths_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "extra_model_paths.yaml").write_text(text)
    with pytest.raises(InputError, match="cannot be read as ComfyUI's list of model folders"):
        weights_in(tmp_path)


def test_a_hub_cache_of_links(root: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--Wan-AI--Wan2.2-I2V-A14B/snapshots/0123"
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(file for file in root.rglob("*") if file.is_file())):
        blob = blobs / f"{number:064}"
        shutil.move(file, blob)
        for revision in (snapshot, snapshot.with_name("older")):
            link = revision / file.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    found = weights_in(tmp_path / "hub")
    assert not found.notes  # the same files under two revisions are no choice
    assert {"high", "low", "svi_high", "svi_pro_low"} <= found.used.keys()
    assert found.models().vae.weights[0].parts[-4] == "0123"


def test_links_in_circles_and_hidden_files_are_passed_over(root: Path) -> None:
    (root / "again").symlink_to(root)
    shutil.copytree(root / HIGH, root / ".hidden")
    vae = root / catalogue.CONVERTED.folder / "Wan2.1_VAE.safetensors"
    vae.with_name("._Wan2.1_VAE.safetensors").write_bytes(b"\0\5\26\7")
    (root / "gone.safetensors").symlink_to("nowhere")
    found = weights_in(root)
    assert found.models().vae.weights == (vae,)
    assert not any(part.startswith(".") for each in found.candidates for part in Path(each.path).parts)
    assert [each.path for each in found.candidates if each.problems] == ["gone.safetensors"]


# --- shards


def test_a_missing_shard_is_named(root: Path) -> None:
    (root / HIGH / SHARD).unlink()
    with pytest.raises(InputError, match=SHARD):
        find_models(root)


def test_a_missing_shard_is_noticed_without_an_index(root: Path) -> None:
    (root / HIGH / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert len(find_models(root).high.weights) == 2
    (root / HIGH / SHARD).unlink()
    with pytest.raises(InputError, match=SHARD):
        find_models(root)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": ["x"]}}', "[" * 100_000]
)
def test_a_broken_index_is_an_error(root: Path, text: str) -> None:
    (root / HIGH / "diffusion_pytorch_model.safetensors.index.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"index\.json: not an index of shards"):
        find_models(root)


@pytest.mark.parametrize(
    "name", ["../../secret.safetensors", "/etc/passwd", "model.bin", 3, "a\nb.safetensors"]
)
def test_an_index_reads_nothing_elsewhere(root: Path, name: object) -> None:
    index = root / HIGH / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}), "utf-8")
    with pytest.raises(InputError, match="no shard beside it"):
        find_models(root)


# --- which file has a role


@pytest.mark.parametrize(
    ("path", "expert"),
    [
        ("wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "high"),
        ("Wan2_2-I2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors", "low"),
        ("HighNoise/Wan2.2-I2V-A14B-HighNoise-Q4_K_S.gguf", "high"),
        ("LowNoise/model.gguf", "low"),
        ("high_noise_model/diffusion_pytorch_model-00001-of-00002.safetensors", "high"),
        ("transformer/model.safetensors", "high"),
        ("transformer_2/model.safetensors", "low"),
        ("high/low_noise.safetensors", "low"),
        ("lowvram/slow_motion.safetensors", None),
        ("high_and_low.safetensors", None),
    ],
)
def test_names_say_which_expert(path: str, expert: str | None) -> None:
    assert expert_named(path) == expert


def test_the_most_precise_file_is_used_and_reported(root: Path) -> None:
    shutil.rmtree(root / HIGH)
    for name, dtype in (("a_high_fp16", np.float16), ("b_high_fp32", np.float32)):
        save_as(root / "unet" / f"{name}.safetensors", dtype)
    found = weights_in(root)
    assert found.models().high.weights[0].name == "b_high_fp32.safetensors"
    (note,) = found.notes
    assert note.startswith("high-noise expert: ")
    assert note.endswith("b_high_fp32.safetensors (F32) is used, the most precise of 2")


def test_a_chosen_file_is_used_whatever_else_is_there(root: Path) -> None:
    file = save_as(root / "unet/some_low.safetensors", np.float16)
    assert weights_in(root, high=file).models().high.weights == (file,)
    assert weights_in(root, high=root / LOW).models().high.weights[0].parent == root / LOW


@pytest.mark.parametrize(
    ("role", "file", "message"),
    [
        ("hihg", HIGH, "hihg is not a role; roles are high, low, vae, text_encoder"),
        ("high", "nowhere.safetensors", "there is no such file for high"),
        ("high", TOKENIZER, "high is the high-noise expert, but this is another file: tokenizer"),
        ("vae", HIGH, "vae is the VAE, but this holds 0 of them: Wan 2.2 I2V expert"),
        ("svi_high", str(PAIR), "but this holds 4 of them: LoRA"),
    ],
)
def test_a_wrong_choice_is_named(root: Path, role: str, file: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        weights_in(root, **{role: root / file})
    assert message in str(caught.value)


def test_swapped_names_are_seen_by_sha256(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / HIGH)
    shutil.rmtree(root / LOW)
    named_high = save_as(root / "unet/wan_high.safetensors", folder=LOW)
    named_low = save_as(root / "unet/wan_low.safetensors", folder=HIGH)
    monkeypatch.setitem(locate.KNOWN_EXPERTS, sha256_of(named_high), "low")
    monkeypatch.setitem(locate.KNOWN_EXPERTS, sha256_of(named_low), "high")
    weights = find_weights(ModelFolders((root,)), sha256_of)
    assert [note.partition(": ")[2][:21] for note in weights.notes] == [
        "is used as the high-n",
        "is used as the low-no",
    ]
    found = weights.models()
    assert (found.high.weights, found.low.weights) == ((named_low,), (named_high,))
    with pytest.raises(
        InputError, match=r"is the low-noise expert \(by its sha256\), not the high-noise one"
    ):
        find_weights(ModelFolders((root,), (("high", named_high),)), sha256_of)


def test_an_expert_without_a_telling_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / HIGH)
    file = save_as(root / "unet/my_model.safetensors")
    with pytest.raises(InputError, match="is an expert, but its name does not say which") as caught:
        find_models(root)
    assert str(file) in str(caught.value)
    monkeypatch.setitem(locate.KNOWN_EXPERTS, sha256_of(file), "high")
    assert find_weights(ModelFolders((root,)), sha256_of).models().high.weights == (file,)


def test_one_expert_under_both_names_is_an_error(root: Path) -> None:
    shutil.rmtree(root / HIGH)
    shutil.rmtree(root / LOW)
    file = save_as(root / "unet/wan_high.safetensors")
    shutil.copy(file, root / "unet/wan_low.safetensors")
    assert find_models(root).high.weights == (file,)
    with pytest.raises(InputError, match=r"is the same file as .*one of them has a wrong name"):
        find_weights(ModelFolders((root,)), sha256_of)


def test_only_files_that_may_be_used_are_hashed(root: Path) -> None:
    for expert, folder in (("high", HIGH), ("low", LOW)):
        save_as(root / f"unet/a_{expert}_fp16.safetensors", np.float16, folder)
        save_as(root / f"unet/b_{expert}_fp32.safetensors", np.float32, folder)
        shutil.rmtree(root / folder)
    hashed: list[Path] = []

    def digest(file: Path) -> str:
        hashed.append(file)
        return sha256_of(file)

    find_weights(ModelFolders((root,)), digest)
    assert {file.stem for file in hashed} == {"b_high_fp32", "b_low_fp32"}


def test_one_line_names_all_that_is_missing_and_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as caught:
        find_models(tmp_path)
    (problem,) = caught.value.problems
    named = ("high-noise expert", "low-noise expert", "VAE", "text encoder", "tokenizer")
    assert all(part in problem.what for part in (*named, "--engine animatic"))
    assert f"svi-story models download --models {tmp_path} " in problem.what
    with pytest.raises(InputError, match=r"models download --variant 2.0-pro --preset fast --models"):
        weights_in(tmp_path).require([*SVI["2.0-pro"], *DISTILL])
    for lora in (MODELS / "Stable-Video-Infinity").rglob("*_pro.safetensors"):
        shutil.copy(lora, tmp_path)
    with pytest.raises(InputError, match=r"models download --variant 2.0-pro --models"):
        find_models(tmp_path)  # nothing for another variant
    monkeypatch.setattr("svi_story.engines.svi.NEEDS", ("json", "notorch"))
    with pytest.raises(
        InputError, match=r"the svi engine also needs notorch: pip install 'svi-story\[svi\]'$"
    ):
        find_models(tmp_path)


# --- pairs of LoRAs


@pytest.mark.parametrize("variant", ["2.0", "2.0-pro"])
def test_the_variants_pair(variant: Variant) -> None:
    pair = weights_in(MODELS).pair(SVI[variant])
    assert ("_pro" in pair.high.name) == (variant == "2.0-pro")
    assert "high" in pair.of("high").name
    assert "low" in pair.of("low").name


def test_each_missing_lora_is_named(tmp_path: Path) -> None:
    for roles, what in ((SVI["2.0-pro"], "SVI 2.0-pro LoRA"), (DISTILL, "LightX2V LoRA")):
        with pytest.raises(InputError) as caught:
            weights_in(tmp_path).pair(roles)
        assert all(
            f"the {what} of the {expert}-noise expert" in str(caught.value) for expert in ("high", "low")
        )


def test_the_authors_repository_as_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "vita-video-gen/svi-model/version-2.0"
    shutil.copytree(PAIR, folder)
    assert weights_in(tmp_path).pair(SVI["2.0"]).low.parent == folder


def test_a_pair_s_files_belong_together(tmp_path: Path) -> None:
    """Of two distillations, each half-named alike, one is used whole."""
    source = PAIR / "SVI_Wan2.2-I2V-A14B_high_noise_lora_v2.0.safetensors"
    names = [
        *("wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise", "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise"),
        *("Wan2.2-Lightning_I2V_1030_HIGH", "wan2.2_t2v_lightx2v_4steps_lora_v1_low_noise"),
    ]
    for name in names:
        shutil.copy(source, tmp_path / f"{name}.safetensors")
    pair = weights_in(tmp_path).pair(DISTILL)
    assert [pair.high.stem, pair.low.stem] == names[:2]


def test_svi_s_loras_under_other_names_are_known_by_their_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svi_story.engines.svi.weights import lora

    for expert, name in (("high", "one"), ("low", "two")):
        file = tmp_path / f"{name}.safetensors"
        shutil.copy(PAIR / f"SVI_Wan2.2-I2V-A14B_{expert}_noise_lora_v2.0_pro.safetensors", file)
        digest = sha256_of(file)
        role = lora.LoraRole("2.0-pro", "high" if expert == "high" else "low")
        monkeypatch.setitem(lora.OFFICIAL, (digest[:8], digest[-4:]), role)
    pair = find_weights(ModelFolders((tmp_path,)), sha256_of).pair(SVI["2.0-pro"])
    assert (pair.high.stem, pair.low.stem) == ("one", "two")


# --- what is no weight of Wan 2.2's image-to-video model


def expert_shapes(channels: int, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {
        "patch_embedding.weight": (96, channels, 1, 2, 2),
        "head.head.weight": (64, 96),
        "blocks.0.self_attn.q.weight": (96, 96),
        **more,
    }


OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "Wan T2V expert": (expert_shapes(16), "takes 16 channels, an image-to-video expert 36"),
    "Wan 2.1 I2V model": (expert_shapes(36, **{"img_emb.proj.0.weight": (1,)}), "image embeddings"),
    "Wan 2.2 TI2V 5B model": (
        expert_shapes(48, **{"head.head.weight": (192, 96)}),
        "takes 48 channels, an image-to-video expert 100",
    ),
    "Wan 2.2's own VAE": (
        {"decoder.upsamples.0.upsamples.0.residual.2.weight": (1,)},
        "the A14B experts need Wan 2.1's VAE",
    ),
    "CLIP encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": (1, 1)}, "Wan 2.2 needs UMT5"),
    "T5 text encoder": (
        {
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64),
            "encoder.block.1.layer.0.SelfAttention.q.weight": (1, 1),
        },
        "a position bias in each block",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_models_are_known_by_their_tensors(what: str) -> None:
    shapes, reason = OTHERS[what]
    _, found, why = classify({f"model.diffusion_model.{key}": shape for key, shape in shapes.items()})
    assert found == what
    assert reason in why


def test_an_unusable_file_for_a_role_says_why(root: Path) -> None:
    shutil.rmtree(root / HIGH)
    tensors = whole_expert(HIGH)
    tensors["patch_embedding.weight"] = tensors["patch_embedding.weight"][:, :16]
    save_file(tensors, root / "wan2.2_t2v_high_noise.safetensors")
    with pytest.raises(InputError) as caught:
        find_models(root)
    assert "wan2.2_t2v_high_noise.safetensors: Wan T2V expert: takes 16 channels" in str(caught.value)
    assert "not found: the high-noise expert; download" in str(caught.value)


def test_finding_files_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from svi_story.engines.svi import identity; "
        "from svi_story.engines.svi.weights import locate; "
        f"locate.find_weights(locate.ModelFolders((Path({str(MODELS)!r}),))).models(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
