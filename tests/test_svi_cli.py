"""The SVI engine through the command line, on a tiny checkpoint in upstream's layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import svi_support as support

from svi_story.cache.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.cache.entry import Entry

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

FLAGS = ("--models", str(support.MODELS), "--dtype", "float32")


def reference_board(write_board: Write, variant: str, **changes: Any) -> Path:
    """The board of the reference chain."""
    shutil.copy(support.DATA / "anchor.png", "reference.png")
    settings = support.SETTINGS
    return write_board(
        **{
            "reference": "reference.png",
            "resolution": f"{settings['width']}x{settings['height']}",
            "fit": "stretch",
            "negative_prompt": settings["negative_prompt"],
            "engine": {
                "variant": variant,
                "steps": settings["num_inference_steps"],
                "guidance": settings["cfg_scale"],
                "shift": settings["sigma_shift"],
                "boundary": settings["switch_boundary"],
                "max_frames": settings["frames_per_clip"],
            },
            "clips": [{"prompt": prompt} for prompt in settings["prompts"]],
            **changes,
        }
    )


def entries(svi_story: Run, board: Path, *flags: str) -> list[Entry]:
    plan = json.loads(svi_story("plan", board, *(flags or FLAGS), "--json").out)["boards"][0]
    keys = [segment["key"] for clip in plan["clips"] for segment in clip["segments"]]
    found = [Store(Path("renders/.cache"), print).entry(key) for key in keys]
    return [entry for entry in found if entry is not None]


@pytest.mark.parametrize("variant", support.VARIANTS)
def test_a_film_is_the_reference_s_clip_for_clip(write_board: Write, svi_story: Run, variant: str) -> None:
    board = reference_board(write_board, variant)
    ended = svi_story("render", board, *FLAGS)
    assert ended.code == 0, ended.err
    made = entries(svi_story, board)
    assert len(made) == 3
    for index, entry in enumerate(made):
        with entry.frames() as frames:
            shown = np.stack([frames[k] for k in range(len(frames))]).astype(int)
        wanted = support.chain()[f"{variant}/clip{index}/frames"].numpy().astype(int)
        assert (np.abs(shown - wanted) <= 1).mean() >= 0.999
        wanted_latents = support.chain()[f"{variant}/clip{index}/latents"].numpy()
        limit = 5e-3 if variant == "2.0" and index else 1e-4
        assert np.abs(entry.latents()["latents"] - wanted_latents).max() < limit * wanted_latents.std()
        notes: Any = entry.manifest["notes"]
        assert notes["environment"]["attention"] == "torch-flash"
        assert notes["environment"]["device"] == "cpu"


def test_prompts_are_encoded_once_and_kept(write_board: Write, svi_story: Run) -> None:
    clips = [{"prompt": "The street at night.", "frames": 5}]
    board = reference_board(write_board, "2.0", clips=clips)
    assert svi_story("render", board, *FLAGS).code == 0
    kept = sorted(Path("renders/.cache/embeddings").iterdir())
    assert len(kept) == 2  # the prompt and the negative prompt
    before = [path.stat().st_mtime_ns for path in kept]
    assert svi_story("render", board, *FLAGS, "--force", "all").code == 0
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_without_weights_nothing_starts_and_all_that_is_missing_is_told(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    board = reference_board(write_board, "2.0-pro")
    ended = svi_story("render", board, "--models", "nowhere")
    assert ended.code == 2
    for what in ("high-noise expert", "low-noise expert", "VAE", "text encoder", "tokenizer"):
        assert what in ended.err
    assert "--engine animatic" in ended.err
    assert not (tmp_path / "renders").exists()
    plan = svi_story("plan", board, "--models", "nowhere", "--json")
    assert plan.code == 0
    assert json.loads(plan.out)["boards"][0]["clips"][0]["segments"][0]["key"] is None
    assert svi_story("validate", board).code == 0


def test_keys_know_weights_dtype_and_loras(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    def keys(board: Path, *flags: str) -> list[str]:
        plan = json.loads(svi_story("plan", board, *(flags or FLAGS), "--json").out)["boards"][0]
        return [segment["key"] for clip in plan["clips"] for segment in clip["segments"]]

    style = tmp_path / "style.safetensors"
    shutil.copy(support.lora_file(support.MODELS, "low", "2.0-pro"), style)
    board = reference_board(write_board, "2.0")
    plain = keys(board)
    assert keys(board, "--models", str(support.MODELS), "--dtype", "bfloat16") != plain
    clips = [{"prompt": prompt} for prompt in support.SETTINGS["prompts"]]
    clips[1]["loras"] = [{"path": style.name, "low": 0.5}]
    with_lora = keys(reference_board(write_board, "2.0", clips=clips))
    assert [old == new for old, new in zip(plain, with_lora, strict=True)] == [True, False, False]
    clips[1]["loras"] = [{"path": style.name, "low": 0.6}]
    assert keys(reference_board(write_board, "2.0", clips=clips))[1] != with_lora[1]
    with_negative = keys(reference_board(write_board, "2.0", negative_prompt="rain"))
    assert all(old != new for old, new in zip(plain, with_negative, strict=True))


def test_a_lora_changes_its_clip(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    style = tmp_path / "style.safetensors"
    shutil.copy(support.lora_file(support.MODELS, "low", "2.0-pro"), style)
    clips: list[dict[str, Any]] = [{"prompt": "The street.", "frames": 5}]
    (plain,) = [svi_story("render", reference_board(write_board, "2.0", clips=clips), *FLAGS).code]
    assert plain == 0
    before = entries(svi_story, reference_board(write_board, "2.0", clips=clips))[0].latents()["latents"]
    clips[0]["loras"] = [{"path": style.name, "high": 0.5, "low": 2.0}]
    board = reference_board(write_board, "2.0", clips=clips)
    ended = svi_story("render", board, *FLAGS)
    assert ended.code == 0, ended.err
    assert not np.array_equal(entries(svi_story, board)[0].latents()["latents"], before)
    clips[0]["loras"] = [{"path": "missing.safetensors"}]
    ended = svi_story("render", reference_board(write_board, "2.0", clips=clips), *FLAGS)
    assert ended.code == 2
    assert "missing.safetensors" in ended.err


def test_the_fast_preset_wants_its_pair(write_board: Write, svi_story: Run) -> None:
    board = reference_board(write_board, "2.0", engine={"preset": "fast", "max_frames": 5})
    ended = svi_story("render", board, *FLAGS)
    assert ended.code == 2
    assert "svi-story models download --preset fast" in ended.err


def test_the_fast_preset_takes_the_pair_that_is_named(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    for expert in ("high", "low"):
        source = support.lora_file(support.MODELS, expert, "2.0-pro")
        shutil.copy(source, tmp_path / f"{expert}_noise_quick.safetensors")
    distill = {"high": "high_noise_quick.safetensors", "low": "low_noise_quick.safetensors"}
    engine = {"preset": "fast", "steps": 2, "max_frames": 5, "distill": distill}
    board = reference_board(write_board, "2.0", engine=engine, clips=[{"prompt": "The street."}])
    plan = svi_story("plan", board, *FLAGS)
    assert "steps 2, guidance 1.5, shift 8, boundary 0.9" in plan.out
    ended = svi_story("render", board, *FLAGS)
    assert ended.code == 0, ended.err
    distill["high"], distill["low"] = distill["low"], distill["high"]
    swapped = reference_board(write_board, "2.0", engine=engine, clips=[{"prompt": "The street."}])
    assert "swap the two" in svi_story("render", swapped, *FLAGS).err


def test_tiles_are_asked_for_recorded_and_keyed(write_board: Write, svi_story: Run) -> None:
    board = reference_board(write_board, "2.0", clips=[{"prompt": "The street.", "frames": 5}])
    assert svi_story("render", board, *FLAGS, "--vae", "tiles").code == 0
    assert entries(svi_story, board) == []
    (tiled,) = entries(svi_story, board, *FLAGS, "--vae", "tiles")
    assert tiled.environment["vae"] == "tiled"


def test_the_kernel_is_chosen_by_name(write_board: Write, svi_story: Run) -> None:
    board = reference_board(write_board, "2.0", clips=[{"prompt": "The street.", "frames": 5}])
    assert svi_story("render", board, *FLAGS, "--attention", "torch-math").code == 0
    assert entries(svi_story, board)[0].environment["attention"] == "torch-math"
    missing = svi_story("render", board, *FLAGS, "--attention", "flash-attn-2", "--force", "all")
    assert missing.code == 1
    assert "--attention" in missing.err
    assert svi_story("render", board, *FLAGS, "--attention", "fast").code == 2
