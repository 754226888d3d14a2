"""Experts in int8: what they hold, the same bits in every memory mode, and experts that were prepared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import svi_support as support
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_svi_memory import PLENTY, published, room, switching

from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.memory import MemoryPlan, expert_size, needs_of
from svi_story.engines.svi.weights import loading, prepared
from svi_story.engines.svi.weights.architecture import A14B, count_parameters, is_quantized
from svi_story.engines.svi.weights.loading import Placement, read_transformer
from svi_story.engines.svi.weights.locate import find_weights
from svi_story.engines.svi.weights.lora import LoraUse
from svi_story.engines.svi.weights.prepared import PreparedExperts, plan_experts, prepare_expert
from svi_story.engines.svi.weights.quantized import QuantizedLinear, quantize
from svi_story.errors import InputError, RenderError
from svi_story.events import ModelLoaded, Warned
from svi_story.files import sha256_file
from svi_story.plan.model import Size
from svi_story.settings import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended
    from torch import Tensor

    from svi_story.engines.svi.engine import Svi
    from svi_story.engines.svi.memory import MemoryMode
    from svi_story.engines.svi.weights.prepared import ExpertToPrepare

    Run = Callable[..., Ended]

F32, BF16 = (Placement(support.CPU, dtype, int8=True) for dtype in (torch.float32, torch.bfloat16))


def restored(weight: Tensor) -> Tensor:
    values, scale = quantize("w", weight).values()
    return values.float() * scale.float()


# --- numbers


@given(st.integers(0, 2**31), st.integers(-30, 30), st.integers(1, 40))
def test_every_value_is_within_half_a_step(seed: int, exponent: int, width: int) -> None:
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    values, scale = quantize("w", weight).values()
    assert values.abs().max() == 127
    assert ((restored(weight) - weight).abs() <= scale.float() * 0.5001).all()
    assert (scale.float() * 127 <= 1.005 * weight.abs().amax(dim=1, keepdim=True)).all()


def test_rows_of_zeros_and_of_the_smallest_numbers() -> None:
    weight = torch.zeros(4, 3)
    weight[1, 1], weight[2, 0], weight[3] = 1e-40, -3e38, 7.0
    found = restored(weight)
    assert found.isfinite().all()
    assert not found[:2].any()
    assert torch.allclose(found[2:], weight[2:], rtol=0.004)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_layer_multiplies_with_the_weight_rounded_once(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(24, 16)
    quantized = QuantizedLinear(layer.to(dtype))
    parts = quantize("weight", torch.randn(16, 24))
    quantized.load_state_dict({**parts, "bias": layer.bias})
    x = torch.randn(5, 24).to(dtype)
    once = (parts["weight"].double() * parts["weight_scale"].double()).to(dtype)
    assert torch.equal(quantized(x), torch.nn.functional.linear(x, once, layer.bias))


@pytest.mark.parametrize("place", [F32, BF16])
def test_what_an_expert_holds_is_quantised_from_the_float32_merge(place: Placement) -> None:
    paths = support.find_models(support.MODELS)
    uses = [LoraUse(support.lora_file(support.MODELS, "high"), 1.0, whole=True)]
    held = Experts(paths, place, "torch-flash")
    held.set_loras({"high": uses, "low": []})
    model = held.use("high")
    plain = Experts(paths, replace(place, int8=False), "torch-flash")
    merged = Experts(paths, Placement(support.CPU, torch.float32), "torch-flash")
    for each in (plain, merged):
        each.set_loras({"high": uses, "low": []})
    others, whole = (dict(each.use("high").named_parameters()) for each in (plain, merged))
    found = dict(model.named_parameters())
    linear = [name for name, weight in whole.items() if is_quantized(name, weight.shape)]
    assert len(linear) == 10 * len(model.blocks)
    for name, weight in whole.items():
        if name in linear:
            values, scale = quantize(name, weight).values()
            assert torch.equal(found.pop(name), values)
            assert torch.equal(found.pop(f"{name}_scale"), scale)
        else:
            assert torch.equal(found.pop(name), others[name])
    assert not found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_are_named(tmp_path: Path, value: float) -> None:
    root = support.copy_models(tmp_path)
    (shard, *_) = sorted((root / support.EXPERT_FOLDERS["high"]).glob("*.safetensors"))
    key = "blocks.0.self_attn.q.weight"
    support.change_file(shard, lambda t: {**t, key: torch.where(t[key] == t[key].max(), value, t[key])})
    with pytest.raises(InputError, match=r"self_attn\.q\.weight holds NaN or Inf"):
        Experts(support.find_models(root), BF16, "torch-flash").use("high")


def test_the_published_experts_take_half() -> None:
    needs = needs_of(A14B, 2, Size(832, 480), 81, int8=True)
    assert needs.expert.blocks * needs.expert.block / 2**30 == pytest.approx(13.1, abs=0.01)
    assert needs.expert.whole / 1e9 == pytest.approx(14.5, abs=0.05)
    assert published().expert.whole / 1e9 == pytest.approx(28.6, abs=0.05)
    assert 4 * A14B.expert / 1e9 == pytest.approx(57.2, abs=0.05)


# --- memory modes


def engine(report: Any = lambda _: None, root: Path = support.MODELS, **options: Any) -> Svi:
    given = {"precision": "int8", "free_memory": PLENTY, "checkpoint_every": 1, **options}
    return support.engine(root, report=report, **given)


@pytest.fixture(scope="module")
def resident() -> list[support.Made]:
    with engine() as svi:
        return support.render(svi, switching())


@pytest.mark.parametrize(
    ("mode", "keep"),
    [
        ("offload", True),
        ("stream", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("offload", False), ("stream", True))),
    ],
)
def test_a_mode_never_changes_numbers(resident: list[support.Made], mode: MemoryMode, keep: bool) -> None:
    needs = needs_of(count_parameters(support.find_models(support.MODELS)), 4, Size(80, 64), 5, int8=True)
    with engine(memory=mode, free_memory=room(mode, keep=keep, needs=needs)) as svi:
        svi.prepare(switching())
        made = support.render(svi, switching())
        assert svi.environment()["experts"] == "int8"
        plan = svi._running().memory.plan
        assert plan is not None
        assert (plan.mode, plan.keep, plan.resident_blocks) == (mode, keep, 0)
    for got, wanted in zip(made, resident, strict=True):
        assert np.array_equal(got.latents, wanted.latents)
        assert np.array_equal(got.frames, wanted.frames)


def test_changing_loras_back_gives_the_same_bits() -> None:
    pair = {e: [LoraUse(support.lora_file(support.MODELS, e), 1.0, whole=True)] for e in ("high", "low")}
    experts = Experts(support.find_models(support.MODELS), BF16, "torch-flash", MemoryPlan("offload"))

    def bits() -> dict[str, Tensor]:
        return {name: weight.clone() for name, weight in experts.use("high").named_parameters()}

    before = bits()
    experts.set_loras(pair)  # type: ignore[arg-type]  # mypy does not infer the literal names
    other = bits()
    experts.set_loras({"high": [], "low": []})
    assert all(torch.equal(weight, before[name]) for name, weight in bits().items())
    assert not all(torch.equal(weight, before[name]) for name, weight in other.items())


def test_int8_is_near_but_not_the_same(resident: list[support.Made]) -> None:
    with engine(precision="bf16") as svi:
        made = support.render(svi, switching()[:1])[0]
    difference = np.linalg.norm(made.latents - resident[0].latents) / np.linalg.norm(made.latents)
    assert 0.0005 < difference < 0.03


# --- what was prepared


@pytest.fixture(scope="module")
def experts_there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both experts with SVI 2.0-pro's LoRAs, computed in float32."""
    folder = tmp_path_factory.mktemp("prepared")
    for each in to_prepare(folder):
        prepare_expert(each, sha256_file, lambda _: None)
    return folder


def to_prepare(folder: Path, root: Path = support.MODELS) -> list[ExpertToPrepare]:
    with engine(root=root) as svi:
        loras = svi.identity.lora_uses(switching()[0])
    return plan_experts(support.find_models(root), [loras], F32, folder, sha256_file)


@pytest.fixture
def prepared_here(experts_there: Path) -> Path:
    """A copy of them where a render looks for them."""
    return Path(shutil.copytree(experts_there, user_cache() / "prepared"))


def rendered(**options: Any) -> tuple[support.Made, list[ModelLoaded], str]:
    """A clip, the experts that were loaded for it, and the warnings."""
    told = support.Recorder()
    with engine(told, **options) as svi:
        (made,) = support.render(svi, switching()[:1])
    loads = [event for event in told.events if isinstance(event, ModelLoaded) and event.model != "vae"]
    return made, loads, "\n".join(str(each) for each in told.events if isinstance(each, Warned))


def test_a_start_reads_what_was_prepared(prepared_here: Path, resident: list[support.Made]) -> None:
    made, loads, told = rendered()
    assert np.array_equal(made.latents, resident[0].latents)
    assert np.array_equal(made.frames, resident[0].frames)
    sizes = [file.stat().st_size for file in sorted(prepared_here.glob("*.safetensors"))]
    for load, size in zip(loads, sizes, strict=True):
        assert 0.9 * size < load.read <= size < 0.6 * source_bytes()
    assert told == ""


def source_bytes() -> int:
    files = (support.MODELS / support.EXPERT_FOLDERS["high"]).glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def test_loras_change_from_and_to_what_was_prepared(
    prepared_here: Path, resident: list[support.Made]
) -> None:
    told = support.Recorder()
    with engine(told) as svi:
        made = support.render(svi, switching()[:2])
    for got, wanted in zip(made, resident, strict=False):
        assert np.array_equal(got.latents, wanted.latents)
    warnings = [each.message for each in told.events if isinstance(each, Warned)]
    assert len(warnings) == 2  # of each expert once: the second clip has a LoRA of its own
    assert all("was made with other LoRAs" in message for message in warnings)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    for file in folder.glob("*.json"):
        manifest = json.loads(file.read_text("utf-8"))
        change(manifest)
        file.write_text(json.dumps(manifest), "utf-8")


def for_each(folder: Path, pattern: str, change: Callable[[Path], object]) -> None:
    for file in folder.glob(pattern):
        change(file)


def damage(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)


def rewrite(folder: Path) -> None:
    """Leave out a tensor, as no prepared file does."""
    for file in folder.glob("*.safetensors"):
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        del tensors["proj_out.bias"]
        mark = {"svi-story-prepared": file.name.partition("-")[0]}
        save_file(tensors, file, mark)
        manifest = json.loads(file.with_suffix(".json").read_text("utf-8"))
        manifest |= {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        file.with_suffix(".json").write_text(json.dumps(manifest), "utf-8")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "torch": (
        lambda folder: change_manifest(folder, lambda m: m["origin"]["made_with"].update(torch="1.0")),
        "was made with torch 1.0, here it is 2",
    ),
    "dtype": (
        lambda folder: change_manifest(folder, lambda m: m["origin"].update(dtype="bfloat16")),
        "was made for --dtype bfloat16",
    ),
    "source": (
        lambda folder: change_manifest(folder, lambda m: m["origin"]["sources"][0].update(sha256="0")),
        "was made from another diffusion_pytorch_model-00001",
    ),
    "strength": (
        lambda folder: change_manifest(folder, lambda m: m["origin"]["loras"][0].update(strength=0.5)),
        "was made with other LoRAs (SVI_Wan2.2-I2V-A14B_high_noise_lora_v2.0_pro.safetensors at 0.5; wanted",
    ),
    "no manifest": (
        lambda folder: for_each(folder, "*.json", Path.unlink),
        "was not completed",
    ),
    "bad manifest": (
        lambda folder: for_each(folder, "*.json", lambda file: file.write_text("{}")),
        "is no manifest",
    ),
    "cut short": (
        lambda folder: for_each(folder, "*.safetensors", lambda file: os.truncate(file, 400_000)),
        "has 400000 bytes instead of 717",
    ),
    "a changed byte": (damage, "has another content than was written"),
    "a missing tensor": (rewrite, "proj_out.bias is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, experts_there: Path, fault: str
) -> None:
    folder = Path(shutil.copytree(experts_there, tmp_path / "models"))
    expert = to_prepare(folder)[0]
    plant, message = FAULTS[fault]
    plant(folder)
    files = find_weights(support.folders(folder)).prepared
    told = support.Recorder()
    finder = PreparedExperts(files, F32, sha256_file, told)
    assert finder.find(expert.origin, expert.blueprint) is None
    assert finder.find(expert.origin, expert.blueprint) is None
    (line,) = str(told).splitlines()
    assert message in line
    assert "the high-noise expert is read from its sources, as no prepared one fits" in line


def test_a_render_reads_the_sources_where_nothing_fits(
    prepared_here: Path, resident: list[support.Made]
) -> None:
    damage(prepared_here)
    made, loads, told = rendered()
    assert np.array_equal(made.latents, resident[0].latents)
    assert all(load.read > source_bytes() * 0.9 for load in loads)
    assert told.count("has another content than was written") == 2


def test_preparing_is_resumed_after_it_was_interrupted(
    tmp_path: Path, experts_there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loading.read_weights

    def interrupt(entries: Any, take: Any, write: Any, progress: Any) -> None:
        for count, (name, entry) in enumerate(entries.items()):
            if count == 20:
                raise KeyboardInterrupt
            for parameter, weight in take(name, entry).items():
                write(parameter, weight)

    high, low = to_prepare(tmp_path)
    prepare_expert(high, sha256_file, lambda _: None)
    monkeypatch.setattr(prepared, "read_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_expert(low, sha256_file, lambda _: None)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    monkeypatch.setattr(prepared, "read_weights", original)
    again = to_prepare(tmp_path)
    assert [each.there for each in again] == [True, False]
    prepare_expert(again[1], sha256_file, lambda _: None)
    for file in experts_there.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    (high, low) = to_prepare(tmp_path)
    monkeypatch.setattr(prepared, "read_weights", fail)
    with pytest.raises(RenderError, match=r"high-.*cannot be written: No space left on device"):
        prepare_expert(high, sha256_file, lambda _: None)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(prepared, "free_space", lambda _: 10**6)
    with pytest.raises(InputError, match=r"2 experts need 0\.0 GB, and 0\.0 GB are free.*--to"):
        prepared.check_space(tmp_path, [high, low])


def test_what_another_process_prepares_meanwhile_is_not_prepared_again(
    tmp_path: Path, svi_story: Run, experts_there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def prepare(expert: ExpertToPrepare, *_: object) -> None:
        begun.append(expert.origin.expert)
        shutil.copytree(experts_there, expert.target.parent)

    monkeypatch.setattr(prepared, "prepare_expert", prepare)
    words = ("models", "prepare", *FLAGS, "--variant", "2.0-pro", "--to", tmp_path / "fast")
    assert svi_story(*words).code == 0
    assert begun == ["high"]


def test_what_is_in_the_way_of_a_manifest_is_named(tmp_path: Path) -> None:
    high, _ = to_prepare(tmp_path)
    high.target.with_suffix(".json").mkdir()
    with pytest.raises(RenderError, match=r"^\S*\.int8\.json: cannot be written: .*move away the folder"):
        prepare_expert(high, sha256_file, lambda _: None)


@pytest.mark.slow
def test_a_killed_preparation_is_resumed(experts_there: Path, tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_svi_int8 as tests
from svi_story.engines.svi.weights import tensors
original, count = tensors.StoredTensor.read, 0
def read(self, device=None):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, device)
plans = tests.to_prepare(Path(sys.argv[2]))
tensors.StoredTensor.read = read
for each in plans:
    if not each.there:
        tests.prepare_expert(each, tests.sha256_file, lambda _: None)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    here = str(Path(__file__).parent)
    for kill in (3, 100, 150, 10**6):
        command = [sys.executable, "-c", program, here, str(tmp_path), str(kill)]
        done = subprocess.run(command, env=environment, check=False, capture_output=True)
        assert done.returncode == (0 if kill == 10**6 else -signal.SIGKILL), done.stderr
    names = sorted(file.name for file in experts_there.iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (experts_there / name).read_bytes()


# --- commands


def board(write_board: Callable[..., Path], **changes: Any) -> Path:
    shutil.copy(support.DATA / "anchor.png", "reference.png")
    settings = {"steps": 2, "variant": "2.0-pro", "max_frames": 9}
    clips = [{"prompt": "The cat is walking.", "frames": 5}]
    fields = {"reference": "reference.png", "resolution": "80x64", "engine": settings, "clips": clips}
    return write_board(**{**fields, **changes})


FLAGS = ("--models", str(support.MODELS), "--dtype", "float32")


def keys(ended: Ended) -> list[str]:
    assert ended.code == 0, ended.err
    return [part["key"] for clip in json.loads(ended.out)["boards"][0]["clips"] for part in clip["segments"]]


def test_int8_is_in_the_key_wherever_it_is_asked_for(
    write_board: Callable[..., Path], svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = board(write_board)
    plain = keys(svi_story("plan", path, *FLAGS, "--json"))
    assert keys(svi_story("plan", path, *FLAGS, "--weights", "bf16", "--json")) == plain
    int8 = keys(svi_story("plan", path, *FLAGS, "--weights", "int8", "--json"))
    assert int8 != plain
    monkeypatch.setenv("SVI_STORY_WEIGHTS", "int8")
    assert keys(svi_story("plan", path, *FLAGS, "--json")) == int8
    monkeypatch.delenv("SVI_STORY_WEIGHTS")
    expert = next((support.MODELS / support.EXPERT_FOLDERS["high"]).glob("*.safetensors"))
    for text in ('weights = "int8"', f'[weights]\nprecision = "int8"\nhigh = "{expert.parent}"'):
        Path("svi-story.toml").write_text(text, "utf-8")
        assert keys(svi_story("plan", path, *FLAGS, "--json")) == int8
        assert keys(svi_story("plan", path, *FLAGS, "--weights", "bf16", "--json")) == plain
    Path("svi-story.toml").write_text('weights = "int4"', "utf-8")
    assert 'weights: "int4" is none of bf16, int8; did you mean "int8"?' in svi_story("plan", path).err
    assert svi_story("plan", path, "--weights", "fp8").code == 2


def test_a_film_with_prepared_experts(write_board: Callable[..., Path], svi_story: Run) -> None:
    path = board(write_board)
    told = svi_story("models", "prepare", path, *FLAGS, "--weights", "int8", "--to", "fast")
    assert told.code == 0, told.err
    assert "with a further --models fast" in told.err
    files = [Path(line) for line in told.out.splitlines()]
    assert [file.name.partition("-")[0] for file in files] == ["high", "low"]
    again = svi_story("models", "prepare", *FLAGS, "--variant", "2.0-pro", "--to", "fast")
    assert (again.out, "to write" in again.err) == (told.out, False)
    known = svi_story("models", "prepare", path, *FLAGS, "--models", "fast", "--to", "fast")
    assert "further" not in known.err
    ended = svi_story("render", path, *FLAGS, "--models", "fast", "--weights", "int8", "--json")
    assert ended.code == 0, ended.err
    events = [json.loads(line) for line in ended.out.splitlines()]
    read = [event["read"] for event in events if event["event"] == "model_loaded" and event["model"] != "vae"]
    assert all(0 < count < files[0].stat().st_size for count in read)
    assert [event["weights"] for event in events if event["event"] == "engine_settled"] == ["int8"]
    record = json.loads(Path("renders/board.json").read_text("utf-8"))
    assert [maker["environment"]["experts"] for maker in record["makers"]] == ["int8"]
    listed = svi_story("models", "list", *FLAGS[:2], "--models", "fast")
    lines = [line for line in listed.out.splitlines() if line.startswith("prepared")]
    assert [line.split()[-2] for line in lines] == ["ready", "ready"]
    damage(Path("fast"))
    checked = svi_story("models", "check", *FLAGS[:2], "--models", "fast")
    assert checked.code == 1
    assert checked.err.count("has another content than was written (by its sha256)") == 2


def test_what_cannot_be_prepared(svi_story: Run) -> None:
    assert svi_story("models", "prepare", "--weights", "bf16").code == 2
    Path("file").touch()
    ended = svi_story("models", "prepare", *FLAGS, "--to", "file/in")
    assert ended.code != 0
    assert "file/in" in ended.err
    assert "Traceback" not in ended.err
    assert svi_story("models", "prepare", *FLAGS, "nowhere.yaml").code == 2


def test_doctor_says_whether_experts_were_prepared(prepared_here: Path, svi_story: Run) -> None:
    ended = svi_story("doctor", *FLAGS[:2], "--weights", "int8")
    assert "1 high-noise, 1 low-noise experts" in ended.out
    shutil.rmtree(prepared_here)
    ended = svi_story("doctor", *FLAGS[:2], "--weights", "int8")
    assert "every start reads and quantises the sources" in ended.out


def test_a_bundle_keeps_int8(write_board: Callable[..., Path], svi_story: Run) -> None:
    path = board(write_board)
    for flags, words in (
        ((), "svi, float32, vae whole"),
        (("--weights", "int8"), "svi, float32, int8 weights"),
    ):
        packed = svi_story("export", path, "--to", "bundle", *FLAGS, *flags)
        assert packed.code == 0, packed.err
        bundle = Path(packed.out.strip())
        ended = svi_story("plan", bundle, *FLAGS[:2], "--json")
        assert f"engine {words}" in ended.err
        assert keys(ended) == keys(svi_story("plan", path, *FLAGS, *flags, "--json"))
        bundle.unlink()


def test_the_headers_show_what_is_held() -> None:
    """The count that memory modes are chosen by is that of the model itself."""
    entries = read_transformer(support.find_models(support.MODELS).high).entries
    model = Experts(support.find_models(support.MODELS), F32, "torch-flash").use("high")
    size = expert_size(count_parameters(support.find_models(support.MODELS)), 4, int8=True)
    assert size.whole == sum(parameter.nbytes for parameter in model.parameters())
    assert len(entries) + 10 * size.blocks == len(list(model.parameters()))
