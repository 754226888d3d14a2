"""A film by DiffSynth-Studio's pipeline, driven as the SVI authors do: `upstream_film.py FILM.json`.

`upstream.py` writes the JSON file and runs this in an environment of DiffSynth's own. It knows nothing of
svi-story, whose environment only lends it torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

SVI_LORA = "Stable-Video-Infinity/version-2.0/SVI_Wan2.2-I2V-A14B_{}_noise_lora_v2.0_pro.safetensors"
CONVERTED = "DiffSynth-Studio/Wan-Series-Converted-Safetensors"


class Unused(ModuleType):
    """Stands for torchvision, which has no build for the CPU alone; an error when anything of it is used.

    DiffSynth imports it for training data and for CLIP, which Wan 2.2 does without.
    """

    def __getattr__(self, name: str) -> object:
        raise AttributeError(f"{self.__name__}.{name}: torchvision is not installed")


def without_torchvision() -> None:
    """Let DiffSynth's `import torchvision` succeed, after transformers has found that there is none."""
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():  # it remembers the answer
        for name in ("torchvision", "torchvision.transforms"):
            sys.modules[name] = Unused(name)


def register(models: Path) -> None:
    """Tell DiffSynth the shapes of the small models, which it otherwise looks up by a hash of their names."""
    from diffsynth.configs import MODEL_CONFIGS
    from diffsynth.core.loader import hash_model_file

    def add(name: str, shape_of: str, files: list[Path], **settings: object) -> None:
        paths = [str(file) for file in sorted(files)]
        like = next(each for each in MODEL_CONFIGS if each["model_hash"] == shape_of)
        known = paths if len(paths) > 1 else paths[0]
        MODEL_CONFIGS.append({**like, "model_hash": hash_model_file(known), **settings})
        assert like["model_name"] == name

    experts = models / "Wan-AI" / "Wan2.2-I2V-A14B"
    config = json.loads((experts / "high_noise_model" / "config.json").read_text("utf-8"))
    names = ("in_dim", "dim", "ffn_dim", "freq_dim", "text_dim", "out_dim", "num_heads", "num_layers", "eps")
    shape = {name: config[name] for name in names}
    shape |= {"has_image_input": False, "patch_size": [1, 2, 2], "require_clip_embedding": False}
    parts = list((experts / "high_noise_model").glob("*.safetensors"))
    add("wan_video_dit", "5b013604280dd715f8457c6ed6d6a626", parts, extra_kwargs=shape)
    encoder = models / CONVERTED / "models_t5_umt5-xxl-enc-bf16.safetensors"
    add("wan_video_text_encoder", "9c8818c2cbea55eca56c7b447df170da", [encoder], extra_kwargs=_text(encoder))
    vae = models / CONVERTED / "Wan2.1_VAE.safetensors"
    add("wan_video_vae", "ccc42284ea13e1ad04693284c7a09be6", [vae], model_class=_vae_class(vae))


def _text(file: Path) -> dict[str, int]:
    """The text encoder's shape, read from its tensors."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - no dict
    vocabulary, width = shapes["token_embedding.weight"]
    buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
    return {
        "vocab": vocabulary,
        "dim": width,
        "dim_attn": shapes["blocks.0.attn.q.weight"][0],
        "dim_ffn": shapes["blocks.0.ffn.fc1.weight"][0],
        "num_heads": heads,
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "num_buckets": buckets,
    }


def _vae_class(file: Path) -> str:
    """DiffSynth's VAE with fewer channels, which its constructor does not offer."""
    from diffsynth.models import wan_video_vae
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        width = tensors.get_slice("encoder.conv1.weight").get_shape()[0]

    class NarrowVae(wan_video_vae.WanVideoVAE):  # type: ignore[misc]  # DiffSynth has no types
        def __init__(self, z_dim: int = 16) -> None:
            super().__init__(z_dim)
            model = wan_video_vae.VideoVAE_(dim=width, z_dim=z_dim)
            self.model = model.eval().requires_grad_(requires_grad=False)

    wan_video_vae.NarrowVae = NarrowVae
    return "diffsynth.models.wan_video_vae.NarrowVae"


def make_pipeline(models: Path) -> Any:
    """The pipeline with both experts and SVI 2.0 Pro's LoRAs, in float32 on the CPU."""
    import torch
    from diffsynth.pipelines.wan_video import ModelConfig, WanVideoPipeline

    base = "Wan-AI/Wan2.2-I2V-A14B"
    files = [
        *(f"{expert}_noise_model/diffusion_pytorch_model*.safetensors" for expert in ("high", "low")),
        "models_t5_umt5-xxl-enc-bf16.pth",
        "Wan2.1_VAE.pth",
    ]
    pipe = WanVideoPipeline.from_pretrained(
        torch_dtype=torch.float32,
        device="cpu",
        model_configs=[ModelConfig(model_id=base, origin_file_pattern=pattern) for pattern in files],
    )
    pipe.load_lora(pipe.dit, str(models / SVI_LORA.format("high")), alpha=1)
    pipe.load_lora(pipe.dit2, str(models / SVI_LORA.format("low")), alpha=1)
    return pipe


def condition_as_svi(pipe: Any, anchor: Any) -> None:
    """Replace what the experts look at: [the anchor, the last latent of the clip before, zeros].

    So does the pipeline in the authors' fork; DiffSynth's own release knows a first picture only.
    """
    import torch
    from diffsynth.diffusion.base_pipeline import PipelineUnit
    from diffsynth.pipelines.wan_video import WanVideoUnit_ImageEmbedderVAE

    class Conditioning(PipelineUnit):  # type: ignore[misc]  # DiffSynth has no types
        def __init__(self) -> None:
            shape = ("num_frames", "height", "width")
            super().__init__(input_params=shape, output_params=("y",), onload_model_names=("vae",))
            self.before: Any = None

        def process(self, pipe: Any, num_frames: int, height: int, width: int) -> dict[str, Any]:
            picture = pipe.preprocess_image(anchor.resize((width, height)))
            latent = pipe.vae.encode([picture.transpose(0, 1)], device=pipe.device, tiled=False)
            known = [latent] if self.before is None else [latent, self.before[:, :, -1:]]
            y = torch.cat(known, dim=2)
            y = torch.nn.functional.pad(y, (0, 0, 0, 0, 0, (num_frames - 1) // 4 + 1 - y.shape[2]))
            mask = torch.zeros_like(y[:, :4])
            mask[:, :, 0] = 1
            return {"y": torch.cat([mask, y], dim=1).to(pipe.torch_dtype)}

    unit = Conditioning()
    place = next(i for i, each in enumerate(pipe.units) if isinstance(each, WanVideoUnit_ImageEmbedderVAE))
    pipe.units[place] = unit
    decode = pipe.vae.decode

    def keep_latents(latents: Any, *rest: Any, **options: Any) -> Any:
        unit.before = latents
        return decode(latents, *rest, **options)

    pipe.vae.decode = keep_latents


def make_film(film: dict[str, Any], pipe: Any) -> None:
    """Clip after clip; after each, the film so far is encoded, as the script does."""
    import numpy as np
    from diffsynth.utils.data import save_video

    folder, pictures = Path(film["folder"]), []
    for number, prompt in enumerate(film["prompts"]):
        clip = pipe(
            prompt=prompt,
            negative_prompt=film["negative_prompt"],
            seed=film["seeds"][number],
            tiled=False,
            height=film["height"],
            width=film["width"],
            num_frames=film["frames"],
            num_inference_steps=film["steps"],
            cfg_scale=film["guidance"],
        )
        pictures += clip[film["overlap"] if number else 0 :]
        save_video(pictures, str(folder / f"clip_{number + 1}.mp4"), fps=film["fps"], quality=7)
    save_video(pictures, str(folder / "final.mp4"), fps=film["fps"], quality=5)
    if film["compare"]:
        np.save(folder / "pictures.npy", np.stack([np.asarray(picture) for picture in pictures]))


def main() -> None:
    film = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    models = Path(film["models"])
    os.environ.update(DIFFSYNTH_MODEL_BASE_PATH=str(models), DIFFSYNTH_SKIP_DOWNLOAD="True")
    without_torchvision()
    from PIL import Image

    register(models)
    pipe = make_pipeline(models)
    condition_as_svi(pipe, Image.open(film["anchor"]).convert("RGB"))
    make_film(film, pipe)


if __name__ == "__main__":
    main()
