"""The engine behind the contract: resume, text first, identity, and nothing that leaks between segments."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import svi_support as support
import torch
from svi_support import VARIANTS, Memory
from tokenizers import Tokenizer

from svi_story.engines.base import open_anchor
from svi_story.engines.svi import sampler as sampler_module
from svi_story.engines.svi import text
from svi_story.engines.svi.engine import Svi
from svi_story.engines.svi.identity import SviIdentity
from svi_story.engines.svi.options import SviOptions
from svi_story.engines.svi.text import Embeddings
from svi_story.engines.svi.weights import loading
from svi_story.enginespec.sampling import Distill, Guidance, Lora
from svi_story.errors import InputError, RenderError
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import key_of
from svi_story.plan.model import Segment, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from svi_story.plan.keys import Json


def styled(one: Segment, *loras: Lora) -> Segment:
    """A segment with extra LoRAs."""
    return replace(one, loras=loras)


@pytest.fixture(scope="module")
def svi() -> Iterator[Svi]:
    """One engine in float32 for all tests that leave it as it was."""
    with support.engine(checkpoint_every=1) as entered:
        yield entered


@pytest.fixture
def style(tmp_path: Path) -> Path:
    """A LoRA under a name that says nothing."""
    file = tmp_path / "style.safetensors"
    shutil.copy(support.lora_file(support.MODELS, "low", "2.0-pro"), file)
    support.change_file(file, lambda t: {key: tensor * 0.9 for key, tensor in t.items()})
    return file


# --- sampling and resuming


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resuming_from_any_step_makes_the_same_bits(dtype: str) -> None:
    one = support.segment(0, "2.0-pro", frames=5)
    with support.engine(dtype=dtype, checkpoint_every=1) as entered:
        memory = Memory()
        whole = entered.sample(one, None, memory, support.ignore_step)["latents"]
        assert [int(state["step"][0]) for state in memory.saved] == [1, 2, 3]
        for state in memory.saved:
            seen: list[tuple[int, int]] = []
            rest = entered.sample(one, None, Memory(state), lambda *step, seen=seen: seen.append(step))
            assert np.array_equal(rest["latents"], whole)
            assert seen == [(done, 4) for done in range(int(state["step"][0]) + 1, 5)]


def test_a_checkpoint_is_saved_every_few_steps() -> None:
    memory = Memory()
    settings = support.sampler(steps=7)
    with support.engine(checkpoint_every=3) as entered:
        entered.sample(support.segment(settings=settings, frames=5), None, memory, support.ignore_step)
    assert [int(state["step"][0]) for state in memory.saved] == [3, 6]


def test_what_was_made_before_does_not_matter(svi: Svi, style: Path) -> None:
    last = support.segment(1, "2.0-pro", frames=5)
    with support.engine() as fresh:
        (wanted,) = support.render(fresh, [last])
    support.render(svi, [support.segment(2, "2.0", frames=5)])
    support.render(svi, [styled(support.segment(0, "2.0-pro", frames=5), Lora(style, 0.3, 1.0))])
    (made,) = support.render(svi, [last])
    assert np.array_equal(made.latents, wanted.latents)
    assert np.array_equal(made.frames, wanted.frames)


def test_holding_one_expert_at_a_time_makes_the_same_bits(svi: Svi) -> None:
    one = support.segment(frames=5)
    with support.engine(memory="offload") as entered:
        assert np.array_equal(
            support.render(entered, [one])[0].latents, support.render(svi, [one])[0].latents
        )


@pytest.mark.parametrize(("high", "low", "passes"), [(5.0, 5.0, 8), (1.0, 5.0, 6), (1.0, 1.0, 4)])
def test_no_negative_pass_without_guidance(
    svi: Svi, monkeypatch: pytest.MonkeyPatch, high: float, low: float, passes: int
) -> None:
    count = 0
    original = sampler_module._velocity

    def counted(*arguments: object) -> Tensor:
        nonlocal count
        count += 1
        return original(*arguments)  # type: ignore[arg-type]  # passed through as they are

    monkeypatch.setattr(sampler_module, "_velocity", counted)
    settings = support.sampler(guidance=Guidance(high, low))
    svi.sample(support.segment(settings=settings, frames=5), None, Memory(), support.ignore_step)
    assert count == passes


def test_latents_that_are_no_numbers_are_an_error(svi: Svi) -> None:
    settings = support.sampler(guidance=Guidance(1e38, 1e38))
    with pytest.raises(RenderError, match="clip clip-0: NaN or Inf in the latents"):
        svi.sample(support.segment(settings=settings, frames=5), None, Memory(), support.ignore_step)


def test_pro_carries_latents_and_two_carries_the_frame(svi: Svi) -> None:
    parent = support.render(svi, [support.segment(0, "2.0-pro", frames=5)])[0]
    for variant in VARIANTS:
        one = support.segment(1, variant, frames=5)
        base = svi.sample(one, parent.carry(), Memory(), support.ignore_step)["latents"]
        other = replace(parent.carry(), last_frames=[255 - parent.frames[-1]])
        changed = svi.sample(one, other, Memory(), support.ignore_step)["latents"]
        assert np.array_equal(base, changed) == (variant == "2.0-pro")


# --- text first


def test_all_prompts_are_encoded_once_before_the_experts_come(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = 0
    original = loading.load_text_encoder

    def counted(*arguments: object) -> object:
        nonlocal loads
        loads += 1
        return original(*arguments)  # type: ignore[arg-type]  # passed through as they are

    monkeypatch.setattr("svi_story.engines.svi.text.load_text_encoder", counted)
    chain = [support.segment(i, frames=5) for i in range(3)]
    with support.engine() as entered:
        entered.prepare(chain)
        entered.prepare([replace(chain[0], prompt=f"  {chain[0].prompt}\n")])
        support.render(entered, chain[:2])
    assert loads == 1


def test_embeddings_are_kept_by_content() -> None:
    kept: dict[str, Memory] = {}
    identity = SviIdentity(support.folders(support.MODELS), "bfloat16")
    one = support.segment(frames=5)
    made = []
    for _ in range(2):
        options = SviOptions(support.folders(), dtype="bfloat16", device="cpu")
        engine = Svi(
            options,
            anchor_pixels=lambda _: support.anchor_picture(),
            keep_embedding=lambda prompt: kept.setdefault(identity.text_key(prompt), Memory()),
        )
        with engine as entered:
            made.append(support.render(entered, [one])[0].latents)
    assert np.array_equal(made[0], made[1])
    assert [len(memory.saved) for memory in kept.values()] == [1, 1]
    other = SviIdentity(support.folders(support.MODELS), "float32")
    assert len({identity.text_key("a"), identity.text_key("b"), other.text_key("a")}) == 3


@pytest.mark.parametrize("index", range(4))
def test_text_is_that_of_the_reference(index: int) -> None:
    prompt = [*support.SETTINGS["prompts"], support.SETTINGS["negative_prompt"]][index]
    layout = support.find_models(support.MODELS)
    ids, mask = text.tokenize(text.load_tokenizer(layout.tokenizer), prompt)
    context = Embeddings(layout, loading.Placement(support.CPU, torch.float32), lambda _: None).context(
        prompt
    )
    assert torch.equal(ids, support.units()[f"text/ids{index}"])
    assert torch.equal(mask, support.units()[f"text/mask{index}"])
    assert (context - support.units()[f"text/context{index}"]).abs().max() < 1e-4
    assert not context[0, int(mask.sum()) :].any()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("  a \n\t b\u00a0\u3000c ", "a b c"),
        ("\u201ccurly\u201d \u2018q\u2019", "\"curly\" 'q'"),
        ("&amp;lt;b&amp;gt; &amp; c", "<b> & c"),
        ("&amp;amp;lt;b&amp;amp;gt;", "<b>"),  # ftfy takes one layer off, then two more
        ("sÃ©ance â€” now", "s\u00e9ance \u2014 now"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned_as_the_model_was_trained(written: str, read: str) -> None:
    assert text.clean(written) == read


def test_tokens_are_cut_and_padded_to_512() -> None:
    tokenizer = text.load_tokenizer(support.MODELS / "Wan-AI/Wan2.1-T2V-1.3B/google/umt5-xxl/tokenizer.json")
    ids, mask = text.tokenize(tokenizer, "woman " * 2000)
    assert ids.shape == mask.shape == (1, 512)
    assert ids[0, -1] == 1  # the end of the text is kept
    assert int(mask.sum()) == 512


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_broken_tokenizer_is_an_error(tmp_path: Path, content: str) -> None:
    root = support.copy_models(tmp_path)
    file = root / "Wan-AI/Wan2.1-T2V-1.3B/google/umt5-xxl/tokenizer.json"
    file.write_text(content, "utf-8")
    with support.engine(root) as entered, pytest.raises(InputError, match="not a tokenizer"):
        entered.prepare([support.segment()])


def test_a_tokenizer_without_padding_is_an_error(tmp_path: Path) -> None:
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"a": 0, "<unk>": 1}, "<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="has no <pad>"):
        text.load_tokenizer(tmp_path / "tokenizer.json")


# --- schedule and noise


@pytest.mark.parametrize("steps", [4, 8, 50])
def test_the_schedule_is_that_of_the_reference(steps: int) -> None:
    wanted = support.units()
    assert torch.equal(sampler_module.sigmas(steps, 5.0), wanted[f"schedule/sigmas{steps}"])
    made = sampler_module.make_steps(support.sampler(steps=steps))
    timesteps = torch.tensor([step.timestep for step in made])
    assert torch.equal(timesteps, wanted[f"schedule/timesteps{steps}"])
    deltas = torch.tensor([step.delta for step in made], dtype=torch.float64)
    assert deltas.sum() == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("steps", "shift", "boundary", "high"),
    [(50, 5.0, 0.875, 21), (50, 5.0, 0.9, 18), (6, 8.0, 0.875, 4), (6, 8.0, 0.9, 3), (4, 5.0, 0.0, 4)],
)
def test_high_noise_steps(steps: int, shift: float, boundary: float, high: int) -> None:
    made = sampler_module.make_steps(support.sampler(steps=steps, shift=shift, boundary=boundary))
    assert [step.expert for step in made] == ["high"] * high + ["low"] * (steps - high)


def test_the_switch_compares_the_timestep_before_rounding() -> None:
    (first, second) = sampler_module.make_steps(support.sampler(steps=2, shift=3.0, boundary=0.7501))
    assert (first.expert, second.expert, second.timestep) == ("high", "low", 750.0)
    assert sampler_module.make_steps(support.sampler(steps=2, shift=3.0, boundary=0.75))[1].expert == "high"


@pytest.mark.parametrize("seed", [0, 42, 84])
def test_noise_is_that_of_the_reference(seed: int) -> None:
    shape = sampler_module.latent_shape(13, Size(80, 64), 16)
    wanted = support.units()[f"noise/seed{seed}"]
    assert torch.equal(sampler_module.make_noise(seed, shape, torch.float32), wanted)
    assert torch.equal(sampler_module.make_noise(seed, shape, torch.bfloat16), wanted.to(torch.bfloat16))


@pytest.mark.parametrize("seed", [2**63 - 1, 2**32, 1])
def test_every_seed_of_a_board_makes_noise(seed: int) -> None:
    assert torch.isfinite(sampler_module.make_noise(seed, (1, 16, 2, 2, 2), torch.float32)).all()


# --- LoRAs through the engine


def test_extra_loras_change_the_clip_and_leave_no_trace(svi: Svi, style: Path) -> None:
    one = support.segment(frames=5)
    before, with_style, after = (
        support.render(svi, [segment])[0].latents
        for segment in (one, styled(one, Lora(style, 1.0, 1.0)), one)
    )
    assert np.array_equal(before, after)
    assert not np.array_equal(before, with_style)


def test_a_lora_for_one_expert_leaves_the_other(svi: Svi, style: Path) -> None:
    settings = support.sampler(boundary=0.0)  # the high-noise expert alone
    one = support.segment(settings=settings, frames=5)
    plain, low_only = (
        support.render(svi, [segment])[0].latents for segment in (one, styled(one, Lora(style, 0.0, 1.0)))
    )
    assert np.array_equal(plain, low_only)


def test_unofficial_loras_are_noted(svi: Svi, style: Path, tmp_path: Path) -> None:
    notes = svi.notes(support.segment(0, "2.0-pro"))
    assert len(notes) == 2
    assert all("not known to be the official SVI 2.0-pro LoRA" in note for note in notes)
    named = Path(shutil.copy(style, tmp_path / "style_low_noise.safetensors"))
    (note,) = set(svi.notes(styled(support.segment(0, "2.0-pro"), Lora(named, 1.0, 1.0)))) - set(notes)
    assert "named for the low-noise expert" in note
    assert svi.notes(styled(support.segment(0, "2.0-pro"), Lora(named, 0.0, 1.0))) == notes


def test_a_missing_pair_is_found_before_anything_starts(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    support.lora_file(root, "low").unlink()
    missing = r"SVI 2\.0 LoRA of the low-noise"
    with support.engine(root) as entered:
        with pytest.raises(InputError, match=missing):
            entered.identity.inputs(support.segment())
        with pytest.raises(InputError, match=missing):
            entered.prepare([support.segment()])
        with pytest.raises(RenderError, match=missing):
            support.render(entered, [support.segment(frames=5)])


def test_all_that_is_wrong_is_found_before_anything_starts(tmp_path: Path, style: Path) -> None:
    root = support.copy_models(tmp_path)
    files = [root / support.VAE_FILE, root / support.TEXT_FILE]
    whole = [file.read_bytes() for file in files]
    for file in files:
        file.write_bytes(b"x")
    with pytest.raises(InputError, match=r"(?s)VAE\.safetensors: not a safe.*models_t5.*: not a safe"):
        support.engine(root).__enter__()
    for file, data in zip(files, whole, strict=True):
        file.write_bytes(data)
        support.change_file(file, lambda t: t | {"more": torch.zeros(1)})
    shard = root / support.EXPERT_FOLDERS["low"] / "diffusion_pytorch_model-00001-of-00002.safetensors"
    support.change_file(shard, lambda t: t | {"more": torch.zeros(1)})
    support.change_file(style, lambda t: t | {"odd": torch.zeros(1)})
    with support.engine(root) as entered, pytest.raises(InputError) as caught:
        entered.prepare([support.segment(), styled(support.segment(1), Lora(style, 1.0, 1.0))])
    text = str(caught.value)
    assert all(part in text for part in ("Wan2.1_VAE", "models_t5", "low_noise_model"))
    assert text.count("more is not known to the model") == 3
    for file, data in zip(files, whole, strict=True):
        file.write_bytes(data)
    shard.unlink()
    (root / support.EXPERT_FOLDERS["low"]).rename(root / "away")
    shutil.copytree(support.MODELS / support.EXPERT_FOLDERS["low"], root / support.EXPERT_FOLDERS["low"])
    with support.engine(root) as entered, pytest.raises(InputError, match="odd belongs to no weight"):
        entered.prepare([styled(support.segment(1), Lora(style, 1.0, 1.0))])


def test_nan_in_the_weights_is_named(tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    key = "blocks.0.ffn.0.lora_B.default.weight"
    support.change_file(support.lora_file(root, "high"), lambda t: t | {key: t[key] * float("nan")})
    with support.engine(root) as entered, pytest.raises(RenderError, match="holds NaN"):
        support.render(entered, [support.segment(frames=5)])


def test_a_distillation_pair_is_two_extra_loras() -> None:
    files = (Path("high_noise_model.safetensors"), Path("low_noise_model.safetensors"))
    nowhere = SviIdentity(support.folders(Path("nowhere")), "float32")

    def extras(distill: Distill) -> tuple[Lora, ...]:
        return nowhere.extras(support.segment(settings=support.sampler(distill=distill)))

    assert extras(Distill(0.5, 1.0, files)) == (Lora(files[0], 0.5, 0.0), Lora(files[1], 0.0, 1.0))
    with pytest.raises(InputError, match="swap the two"):
        extras(Distill(0.5, 1.0, files[::-1]))
    with pytest.raises(
        InputError, match=r"LightX2V LoRA of the high.*LightX2V LoRA of the low.*--preset fast"
    ):
        extras(Distill(0.5, 1.0, None))


def test_the_anchor_is_opened_and_fitted(tmp_path: Path) -> None:
    size = Size(80, 64)
    anchor = Fingerprints(tmp_path / "memo.json").anchor(support.DATA / "anchor.png", size, "crop")
    assert np.array_equal(open_anchor(anchor), support.anchor_picture())
    with pytest.raises(RenderError, match="changed while the film was being rendered"):
        open_anchor(replace(anchor, pixels="other"))
    with pytest.raises(RenderError, match=r"gone\.png"):
        open_anchor(replace(anchor, path=tmp_path / "gone.png"))


# --- options


def test_wrong_options_are_errors() -> None:
    with pytest.raises(InputError, match="use bfloat16 or float32"):
        support.engine(dtype="float16")
    with pytest.raises(InputError, match="no attention kernel 'fast'"), support.engine(attention="fast"):
        pass


@pytest.mark.parametrize("kernel", ["flash-attn-2", "flash-attn-3", "torch-cudnn"])
def test_a_kernel_that_does_not_run_here_is_an_error(kernel: str) -> None:
    with pytest.raises(InputError, match=f"{kernel} cannot be used here"), support.engine(attention=kernel):
        pass


def test_kernels_agree(svi: Svi) -> None:
    one = support.segment(frames=5)
    with support.engine(attention="torch-math") as entered:
        assert entered.environment()["attention"] == "torch-math"
        (made,) = support.render(entered, [one])
    assert support.deviation(made.latents, torch.tensor(support.render(svi, [one])[0].latents)) < 1e-4


def test_nothing_is_printed() -> None:
    # A process of its own: the libraries say some things only once, when they are imported.
    code = """
import svi_support as support
with support.engine() as svi:
    svi.prepare([support.segment(frames=5)])
    support.render(svi, [support.segment(frames=5)])
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_environment_names_the_kernel(svi: Svi) -> None:
    assert svi.environment()["attention"] == "torch-flash"
    assert svi.environment()["torch"] == torch.__version__


def test_missing_weights_are_found_on_entering(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="high-noise expert"), support.engine(tmp_path):
        pass


# --- identity

CHANGES: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "other"},
    "negative prompt": {"negative_prompt": "other"},
    "seed": {"seed": 1},
    "size": {"size": Size(96, 64)},
    "frames": {"frames": 9},
    "anchor": {"anchor": replace(support.segment().anchor, pixels="other")},
    "variant": {"options": support.sampler("2.0-pro")},
    "steps": {"options": support.sampler(steps=5)},
    "guidance": {"options": support.sampler(guidance=Guidance(5.0, 4.0))},
    "shift": {"options": support.sampler(shift=8.0)},
    "boundary": {"options": support.sampler(boundary=0.9)},
}
NO_CHANGES: dict[str, dict[str, Any]] = {
    "clip": {"clip": "other"},
    "fps": {"fps": 24},
    "place": {"first_frame": 5, "index": 3, "overlap": 1},
    "motion latents of 2.0": {"options": support.sampler(motion_latents=2)},
    "anchor's file name": {"anchor": replace(support.segment().anchor, path=Path("x.png"))},
}


def key(one: Segment, identity: SviIdentity | None = None) -> str:
    """The key of a segment's inputs."""
    inputs: dict[str, Json] = dict(
        (identity or SviIdentity(support.folders(support.MODELS), "float32")).inputs(one)
    )
    return key_of(inputs)


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_frames_changes_the_key(name: str) -> None:
    assert key(replace(support.segment(), **CHANGES[name])) != key(support.segment())


@pytest.mark.parametrize("name", NO_CHANGES)
def test_what_changes_no_frames_changes_no_key(name: str) -> None:
    assert key(replace(support.segment(), **NO_CHANGES[name])) == key(support.segment())


def test_the_negative_prompt_counts_only_with_guidance() -> None:
    settings = support.sampler(guidance=Guidance(1.0, 1.0))
    one = support.segment(settings=settings)
    assert key(one) == key(replace(one, negative_prompt="other"))


def test_dtype_weights_and_loras_change_the_key(tmp_path: Path, style: Path) -> None:
    one = support.segment()
    assert key(one, SviIdentity(support.folders(support.MODELS), "bfloat16")) != key(one)
    root = support.copy_models(tmp_path)
    assert key(one, SviIdentity(support.folders(root), "float32")) == key(one)
    for file in (support.VAE_FILE, support.lora_file(root, "low")):
        changed = support.copy_models(tmp_path / file.stem)
        support.change_file(
            changed / (root / file).relative_to(root), lambda t: {k: v + 1 for k, v in t.items()}
        )
        assert key(one, SviIdentity(support.folders(changed), "float32")) != key(one)
    keys = [key(styled(one, Lora(style, high, 1.0))) for high in (0.5, 1.0)]
    assert len({key(one), *keys}) == 3
    assert key(styled(one, Lora(style, 0.0, 0.0))) == key(one)


def test_files_are_hashed_once() -> None:
    hashed: list[Path] = []

    def digest(file: Path) -> str:
        hashed.append(file)
        return f"{len(file.name):064}"

    identity = SviIdentity(support.folders(support.MODELS), "float32", digest)
    for clip in range(3):
        identity.inputs(support.segment(clip))
    weights = [file for file in hashed if "Stable-Video-Infinity" not in file.parts]
    assert len(weights) == len(set(weights)) == 9
