"""Weights are found in either layout, and everything missing is named at once. No torch in here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from svi_story.engines.svi.weights import catalogue
from svi_story.errors import InputError

if TYPE_CHECKING:
    from svi_story.enginespec.sampling import Variant

MODELS = Path(__file__).parent / "data" / "svi" / "models"
HIGH = "Wan-AI/Wan2.2-I2V-A14B/high_noise_model"
SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the reference models."""
    return Path(shutil.copytree(MODELS, tmp_path / "models"))


def test_upstream_layout() -> None:
    found = catalogue.find_models(MODELS)
    assert [file.name for file in found.high.weights] == [SHARD.replace("02-of", "01-of"), SHARD]
    assert found.high.config is not None
    assert found.low.weights[0].parent.name == "low_noise_model"
    assert found.vae.weights[0].name == "Wan2.1_VAE.safetensors"
    assert found.tokenizer.parts[-2:] == ("umt5-xxl", "tokenizer.json")


@pytest.mark.parametrize("place", ["", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"])
def test_diffusers_layout(tmp_path: Path, place: str) -> None:
    for name in ("transformer", "transformer_2", "vae", "text_encoder"):
        folder = tmp_path / place / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        (folder / "config.json").touch()
    (tmp_path / place / "tokenizer").mkdir()
    (tmp_path / place / "tokenizer" / "tokenizer.json").touch()
    found = catalogue.find_models(tmp_path)
    assert found.high.weights == (tmp_path / place / "transformer" / "model.safetensors",)
    assert found.low.config == tmp_path / place / "transformer_2" / "config.json"


def test_layouts_may_be_mixed(root: Path) -> None:
    (root / "vae").mkdir()
    shutil.move(root / catalogue.CONVERTED.folder / "Wan2.1_VAE.safetensors", root / "vae" / "x.safetensors")
    assert catalogue.find_models(root).vae.weights == (root / "vae" / "x.safetensors",)


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        catalogue.find_models(tmp_path)
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    named = ("high-noise expert", "low-noise expert", "VAE", "text encoder", "tokenizer")
    assert all(part in text for part in (*named, "--engine animatic"))


def test_a_missing_shard_is_named(root: Path) -> None:
    (root / HIGH / SHARD).unlink()
    with pytest.raises(InputError, match=SHARD):
        catalogue.find_models(root)


def test_a_missing_shard_is_noticed_without_an_index(root: Path) -> None:
    (root / HIGH / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert len(catalogue.find_models(root).high.weights) == 2
    (root / HIGH / SHARD).unlink()
    with pytest.raises(InputError, match=SHARD):
        catalogue.find_models(root)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": ["x"]}}', "[" * 100_000]
)
def test_a_broken_index_is_an_error(root: Path, text: str) -> None:
    (root / HIGH / "diffusion_pytorch_model.safetensors.index.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"index\.json: not an index of shards"):
        catalogue.find_models(root)


@pytest.mark.parametrize(
    "name", ["../../secret.safetensors", "/etc/passwd", "model.bin", 3, "a\nb.safetensors"]
)
def test_an_index_reads_nothing_elsewhere(root: Path, name: object) -> None:
    index = root / HIGH / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}), "utf-8")
    with pytest.raises(InputError, match="no shard beside it"):
        catalogue.find_models(root)


def test_two_indexes_are_an_error(root: Path) -> None:
    index = root / HIGH / "diffusion_pytorch_model.safetensors.index.json"
    shutil.copy(index, index.with_name("other.safetensors.index.json"))
    with pytest.raises(InputError, match="2 index files"):
        catalogue.find_models(root)


@pytest.mark.parametrize("variant", ["2.0", "2.0-pro"])
def test_the_variants_pair(variant: Variant) -> None:
    pair = catalogue.find_svi_pair(MODELS, variant)
    assert ("_pro" in pair.high.name) == (variant == "2.0-pro")
    assert "high" in pair.of("high").name
    assert "low" in pair.of("low").name


def test_each_missing_lora_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        catalogue.find_svi_pair(tmp_path, "2.0-pro")
    assert "high_noise_lora_v2.0_pro" in str(caught.value)
    assert "low_noise_lora_v2.0_pro" in str(caught.value)
    with pytest.raises(InputError) as caught:
        catalogue.find_distill_pair(tmp_path)
    assert len(caught.value.problems) == 2


def test_the_authors_repository_as_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "vita-video-gen/svi-model/version-2.0"
    shutil.copytree(MODELS / "Stable-Video-Infinity/version-2.0", folder)
    assert catalogue.find_svi_pair(tmp_path, "2.0").low.parent == folder


def test_finding_files_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from svi_story.engines.svi import identity; "
        "from svi_story.engines.svi.weights import catalogue; "
        f"catalogue.find_models(Path({str(MODELS)!r})); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
