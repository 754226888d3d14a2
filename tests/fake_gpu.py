"""The SVI engine at its full size on a GPU that does not exist: fake tensors have shapes, types and devices
but no numbers. A program of its own (it changes torch); prints what lived in GPU memory and in RAM, as JSON.

    python tests/fake_gpu.py FOLDER '{"layers": 4, "mode": "stream", "vram": 24, "ram": 64, ...}'

Mixed devices and types and wrong shapes are errors of torch. What it cannot see is listed in docs/memory.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import weakref
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import svi_support as support
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from svi_story.engines.svi import engine as engine_module
from svi_story.engines.svi import sampler, streaming, text, vae
from svi_story.engines.svi.device import FreeMemory
from svi_story.engines.svi.engine import Svi
from svi_story.engines.svi.memory import needs_of
from svi_story.engines.svi.options import SviOptions
from svi_story.engines.svi.weights import loading, lora, tensors
from svi_story.engines.svi.weights.architecture import count_parameters
from svi_story.enginespec.sampling import Guidance
from svi_story.events import ModelLoaded
from svi_story.plan.model import Size
from svi_story.units import GIB

PASSES = 2
"""That are sampled after an expert was loaded."""
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


# --- the published models as files without content


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file with a true header, which takes no room on a disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


def write_models(root: Path, layers: int, dtype: str = "F32") -> None:
    """Wan 2.2 I2V A14B with so many of its 40 layers, its VAE and text encoder, and SVI's LoRAs."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        expert = WanTransformer3DModel(in_channels=36, num_layers=layers)
        autoencoder = AutoencoderKLWan()
        encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24)
        )

    def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    target = re.compile(r"blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2))\.weight")
    factors: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes(expert).items():
        if target.fullmatch(name):
            module = name.removesuffix(".weight")
            factors |= {
                f"{module}.lora_A.weight": (128, shape[1]),
                f"{module}.lora_B.weight": (shape[0], 128),
            }
    for name, folder in support.EXPERT_FOLDERS.items():
        write_sparse(root / folder / "diffusion_pytorch_model.safetensors", shapes(expert), dtype)
        (root / folder / "config.json").write_text(json.dumps({"num_heads": 40, "eps": 1e-6}))
        write_sparse(support.lora_file(root, name, "2.0-pro"), factors, "BF16")
        write_sparse(support.lora_file(root, name), factors, "BF16")
    write_sparse(root / support.VAE_FILE, shapes(autoencoder), "F32")
    write_sparse(root / support.TEXT_FILE, shapes(encoder), "BF16")
    tokenizer = Path("Wan-AI/Wan2.1-T2V-1.3B/google/umt5-xxl")
    shutil.copytree(support.MODELS / tokenizer, root / tokenizer)


# --- a GPU


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types none of it
    """Counts the bytes of living tensors by device, and those that are copied from RAM and back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.seen: set[int] = set()
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.copied = self.back = self.waits = 0
        self.waits_by_step: list[int] = []

    def reset(self) -> None:
        self.peak, self.copied, self.waits = Counter(self.now), 0, 0

    def on_step(self, _done: int, _steps: int) -> None:
        self.waits_by_step.append(self.waits)
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy):
            source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
            way = source.device.type, made.device.type
            self.copied += source.nbytes if way == ("cpu", "cuda") else 0
            self.back += source.nbytes if way == ("cuda", "cpu") else 0
            self.waits += way == ("cuda", "cpu")
        tree_map(self._count, made)
        return made

    def _count(self, made: object) -> None:
        if not isinstance(made, torch.Tensor) or made.untyped_storage()._cdata in self.seen:
            return
        storage, device = made.untyped_storage(), made.device.type
        self.seen.add(storage._cdata)
        self.now[device] += storage.nbytes()
        self.peak[device] = max(self.peak[device], self.now[device])
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes(), device)

    def _forget(self, name: int, count: int, device: str) -> None:
        self.seen.discard(name)
        self.now[device] -= count


class Stream:
    """A stream or an event for which nobody waits."""

    def __init__(self, *_: object) -> None:
        self.wait_event = self.wait_stream = self.record = self.synchronize = lambda *_: None


def install_gpu(folder: Path) -> None:
    """Have torch believe in a GPU whose calls do nothing."""
    library = folder / "guard.so"
    if not library.exists():
        home = Path(torch.__file__).parent
        flags = ["-shared", "-fPIC", "-O0", "-std=c++20", f"-I{home / 'include'}"]
        source = Path(__file__).with_name("cuda_guard.cpp")
        linked = [f"-L{home / 'lib'}", "-lc10"]
        subprocess.run(["g++", *flags, str(source), "-o", str(library), *linked], check=True)
    ctypes.CDLL(str(library))

    fakes = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_capability": lambda _=None: (8, 9),
        "get_device_name": lambda _=None: "none",
        "Stream": Stream,
        "Event": Stream,
        "current_stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "mem_get_info": lambda _=None: (24 * GIB, 24 * GIB),
    }
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    put(torch._C, "_accelerator_setAllocatorSettings", lambda _: None)
    put(FakeTensorMode, "avoid_device_init", property(lambda _: True))  # else it asks the driver
    put(torch.Tensor, "record_stream", lambda *_: None)
    put(torch.nn.functional, "scaled_dot_product_attention", attend)


def put(owner: object, name: str, fake: object) -> None:
    """Replace something for good."""
    setattr(owner, name, fake)


def attend(query: Any, key: Any, value: Any, **_: object) -> Any:
    """What a kernel returns that keeps no matrix."""
    assert query.device == key.device == value.device
    assert query.dtype == key.dtype == value.dtype
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)


def replace_what_needs_numbers() -> None:
    """What looks at numbers: reading files, checking them, counting tokens."""

    def read(self: tensors.StoredTensor, device: torch.device | None = None) -> torch.Tensor:
        return torch.empty(self.shape, dtype=DTYPES[self.dtype], device=device)  # a mapped file is no RAM

    def encode(encoder: Any, tokenizer: Any, prompt: str, device: torch.device) -> torch.Tensor:
        ids, mask = (part.to(device) for part in text.tokenize(tokenizer, prompt))
        with torch.no_grad():
            out: torch.Tensor = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return out[0, :77].clone()

    def make_steps(settings: Any) -> Any:
        with _disable_current_modes():
            return original(settings)

    def host_memory(size: int, *, pinned: bool) -> torch.Tensor:
        assert pinned
        return torch.empty(size, dtype=torch.uint8)

    original = sampler.make_steps
    put(tensors.StoredTensor, "read", read)
    put(loading, "_fetch", lambda flags: [True] * len(flags))
    put(lora, "is_finite", lambda _: True)
    put(text, "encode", encode)
    put(text, "check_tokenizer", lambda *_: None)  # the tiny one
    put(engine_module, "make_steps", make_steps)
    put(streaming, "host_memory", host_memory)
    put(engine_module, "_to_numpy", lambda x: np.zeros(x.cpu().shape, np.float32))


def run(folder: Path, case: dict[str, Any]) -> list[dict[str, Any]]:
    """One clip: what each phase held, and what `memory.py` claims that it holds without its margin."""
    models = folder / f"models-{case['layers']}"
    if not models.exists():
        write_models(models, case["layers"])
    size, frames = Size(*case["size"]), case["frames"]
    settings = support.sampler("2.0-pro", steps=2, guidance=Guidance(5.0, 5.0), shift=1.0, boundary=0.9)
    segment = support.segment(0, "2.0-pro", settings, frames=frames, size=size)
    free = FreeMemory(int(case["vram"] * GIB), int(case["ram"] * GIB))
    precision = case.get("weights", "bf16")
    options = SviOptions(
        support.folders(models),
        device="cuda",
        attention="torch-flash",
        memory=case["mode"],
        precision=precision,
        free_memory=free,
    )
    phases: list[dict[str, Any]] = []
    live, loading_peaks = Live(), list[int]()

    def report(event: object) -> None:
        if isinstance(event, ModelLoaded) and event.model != "vae":
            loading_peaks.append(live.peak["cuda"])
            live.reset()

    @cache
    def picture() -> Any:
        return np.zeros((size.height, size.width, 3), np.uint8)

    def note(name: str, claimed: int, ram: int) -> None:
        found = {"gpu": live.peak["cuda"], "ram": live.peak["cpu"], "copied": live.copied, "back": live.back}
        phases.append({"phase": name, "claimed_gpu": claimed, "claimed_ram": ram, **found})
        live.reset()
        live.back = 0

    counts = count_parameters(support.find_models(models))
    needs = needs_of(counts, 2, size, frames, int8=precision == "int8")
    engine = Svi(options, digest=str, anchor_pixels=lambda _: picture(), report=report)
    with FakeTensorMode(allow_non_fake_inputs=True), live, engine as svi:
        svi.prepare([segment])
        memory = svi._running().memory
        plan, expert = memory.plan, needs.expert
        assert plan is not None
        resident = memory.text_blocks()
        encoder = needs.text_encoder
        streamed_text = (encoder.blocks - resident) * encoder.block
        text_gpu = needs["stream"].text.minimum + resident * encoder.block
        if not streamed_text:
            text_gpu = needs["resident"].text.minimum
        note("text", text_gpu, streamed_text)
        latents = svi.sample(segment, None, support.Memory(), live.on_step)["latents"]
        need, streamed = needs[plan.mode], 0
        gpu = need.sampling.minimum
        if plan.mode == "stream":
            streamed = (expert.blocks - plan.resident_blocks) * expert.block
            gpu += plan.resident_blocks * expert.block
        kept = plan.keep and plan.mode != "resident"
        ram = 2 * expert.whole if kept else streamed
        note("sampling", gpu, ram)
        phases[-1]["loading_gpu"] = max(loading_peaks)
        phases[-1]["claimed_copied"] = PASSES * streamed
        phases[-1]["waits"] = live.waits_by_step
        phases[-1]["ahead"] = 2 * expert.block if streamed else 0  # for the next pass, after the last one
        phases[-1]["claimed_back"] = 2 * (expert.whole if kept else streamed)

        def decode(model: Any, strips: int) -> torch.Tensor:
            live.reset()  # the experts have left, unless there is room beside them
            return vae.to_frames(vae.decode(model, torch.empty(latents.shape), strips)).cpu()

        svi._through_vae(size, frames, decode)
        beside = need.sampling.weights + need.decoding.activations
        note("decoding", beside if plan.beside else need.decoding.minimum, ram if kept else 0)
        phases[-1]["environment"] = svi.environment()
        phases[-1]["plan"] = f"{plan.mode} keep={plan.keep} resident_blocks={plan.resident_blocks}"
    return phases


if __name__ == "__main__":
    install_gpu(Path(sys.argv[1]))
    replace_what_needs_numbers()
    found = [run(Path(sys.argv[1]), json.loads(case)) for case in sys.argv[2:]]
    sys.stdout.write(json.dumps(found) + "\n")
