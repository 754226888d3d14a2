"""Write the trained toy where upstream's checkpoints lie, in float16: a folder for `--models`.

    python toy/export.py

Folders and names of files are upstream's. Keys are diffusers'; those of the LoRAs are upstream's too. Every
file says in its metadata that it is the toy's. What else is in the folder stays.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import networks
import torch
from safetensors.torch import load_file, save_file
from train import WORK, Options

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS = Path(__file__).parent / "models"
CONVERTED = "DiffSynth-Studio/Wan-Series-Converted-Safetensors"
LORA = "Stable-Video-Infinity/version-2.0/SVI_Wan2.2-I2V-A14B_{}_noise_lora_v2.0{}"
FILES = {
    "high": "Wan-AI/Wan2.2-I2V-A14B/high_noise_model/diffusion_pytorch_model",
    "low": "Wan-AI/Wan2.2-I2V-A14B/low_noise_model/diffusion_pytorch_model",
    "fast": f"{CONVERTED}/Wan2.1_VAE",
    "text": f"{CONVERTED}/models_t5_umt5-xxl-enc-bf16",
    "2.0-high": LORA.format("high", ""),
    "2.0-low": LORA.format("low", ""),
    "2.0-pro-high": LORA.format("high", "_pro"),
    "2.0-pro-low": LORA.format("low", "_pro"),
}
"""The stage that a file comes from, and its place."""
TOKENIZER = "Wan-AI/Wan2.1-T2V-1.3B/google/umt5-xxl/tokenizer.json"
CONFIG = {
    "_class_name": "WanModel",
    "model_type": "i2v",
    "dim": networks.EXPERT["num_attention_heads"] * networks.EXPERT["attention_head_dim"],
    "num_heads": networks.EXPERT["num_attention_heads"],
    "eps": 1e-6,
}
"""Beside each expert; what the tensors' shapes do not say."""
ABOUT = {"modelspec.title": "svi-story's toy: a drawn world of 64x64 pixels, not Wan 2.2"}
"""Metadata of every file, as https://github.com/Stability-AI/ModelSpec names it.

One entry: safetensors writes several in an order that changes, and then the same training gave other files.
"""


def export(options: Options, models: Path) -> int:
    """Write every file; how many bytes they have together."""
    for stage, place in FILES.items():
        file = models / f"{place}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = load_file(options.file(stage))
        save_file({name: tensor.to(torch.float16) for name, tensor in tensors.items()}, file, ABOUT)
        if stage in ("high", "low"):
            (file.parent / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", "utf-8")
    tokenizer = models / TOKENIZER
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(options.work / "tokenizer.json", tokenizer)
    shutil.copy(options.work / "log.jsonl", models / "training.jsonl")
    return sum(file.stat().st_size for file in models.rglob("*") if file.is_file())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=WORK, help="where train.py left the stages")
    parser.add_argument("--models", type=Path, default=MODELS, help="the folder to write")
    asked = parser.parse_args(words)
    print(f"{asked.models}: {export(Options(asked.work), asked.models) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
