"""What does each weight format cost: quality per layer, per pass and over a chain; memory to load?"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import svi_formats
import svi_support as support
import torch
from common import Finding, Result, Table, finish, options, progress, run_alone, shown, workplace
from load import _status

from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.weights.catalogue import ModelFiles, ModelPaths
from svi_story.engines.svi.weights.loading import Placement, load_transformer, read_transformer
from svi_story.engines.svi.weights.quantized import quantize

if TYPE_CHECKING:
    from common import Cell
    from svi_formats import Plain, Write
    from torch import Tensor

OUT = "peak.json"
RUNS = 3
"""Of loading; the least peak counts, as others have pages of libraries in it."""
FORMATS: dict[str, Write] = {
    "bf16": svi_formats.rounded(torch.bfloat16),
    "fp16": svi_formats.rounded(torch.float16),
    "GGUF Q8_0": svi_formats.FORMATS["Q8_0"],
    "int8, scales per row": svi_formats.FORMATS["int8_tensorwise per row"],
    "int8, a scale per tensor": svi_formats.FORMATS["int8_tensorwise"],
    "fp8 e4m3, a scale per tensor": svi_formats.FORMATS["kijai e4m3"],
    "fp8 e4m3, scales per row": svi_formats.FORMATS["LightX2V"],
    "fp8 e5m2, a scale per tensor": svi_formats.FORMATS["kijai e5m2"],
    "GGUF Q5_1": svi_formats.FORMATS["Q5_1"],
    "GGUF Q5_0": svi_formats.FORMATS["Q5_0"],
    "GGUF Q4_1": svi_formats.FORMATS["Q4_1"],
    "GGUF Q4_0": svi_formats.FORMATS["Q4_0"],
}
HELD = "--weights int8"
SHOWN = ("bf16", "GGUF Q8_0", HELD, "fp8 e4m3, a scale per tensor", "GGUF Q4_0")
"""The formats whose layers are listed one by one."""
ABOUT = (
    "Tiny random experts (width 96, two blocks), computed in float32 on the CPU, so that only the stored "
    "weights differ. Random weights have no outliers, trained ones do: the order is more telling than the "
    "numbers. K-quants and IQ4 are missing, as the gguf package reads them but cannot write them."
)
COLUMNS = (
    "*layer*: root mean square of the difference of a linear layer's weights, beside that of the weights. "
    "*pass*: the same of an expert's output. *clip n*: the same of the final latents of a chain, beside "
    "themselves; SVI 2.0 feeds the last frame back, SVI 2.0 Pro the latents. *bf16, computed in bf16* is "
    "what is rendered by default, beside float32. *--weights int8* are float32 files that are held in int8, "
    "quantised after LoRAs were merged."
)


def relative(got: Tensor, want: Tensor) -> float:
    """The root mean square of a difference, beside that of what is wanted."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def forward(root: Path, *, int8: bool = False) -> Tensor:
    """One pass of the high-noise expert on the reference inputs."""
    place = Placement(support.CPU, torch.float32, int8=int8)
    blueprint = read_transformer(support.find_models(root).high)
    take = partial(place.take_merged, recipe=None)
    model = load_transformer(blueprint, place, take).model
    given = support.units()
    x = torch.cat([given["dit/x"], given["dit/y"]], dim=1)
    with torch.no_grad():
        out: Tensor = model(x, given["dit/timestep"], given["dit/context"], return_dict=False)[0]
    return out


def chain(root: Path, variant: str, dtype: str = "float32", precision: str = "bf16") -> list[Tensor]:
    """The final latents of the reference chain's three clips."""
    with support.engine(root, dtype, precision=precision) as svi:
        clips = [support.segment(clip, variant) for clip in range(3)]
        svi.prepare(clips)
        return [torch.tensor(made.latents) for made in support.render(svi, clips)]


def store(root: Path, write: Write) -> dict[str, tuple[Tensor, Tensor]]:
    """Store both experts in a format; every linear weight as it is read, and as it was."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for expert, folder in support.EXPERT_FOLDERS.items():
        plain = svi_formats.expert(expert)
        for file in (root / folder).glob("*"):
            if file.name != "config.json":
                file.unlink()
        values = write(root / folder / expert, plain)
        found |= {
            f"{expert} {key}": (values[key], tensor)
            for key, tensor in plain.items()
            if svi_formats.is_linear(key, tensor)
        }
    return found


def hold(root: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Every linear weight as `--weights int8` holds it, and as it was."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for expert in support.EXPERT_FOLDERS:
        for key, tensor in svi_formats.expert(expert, root).items():
            if svi_formats.is_linear(key, tensor):
                values, scale = quantize(key, tensor).values()
                found[f"{expert} {key}"] = values.float() * scale.float(), tensor
    return found


def quality(folder: Path) -> tuple[list[tuple[Cell, ...]], list[tuple[Cell, ...]]]:
    """A row for each format; a row for each linear layer of the high-noise expert."""
    by_layer: dict[str, dict[str, float]] = {}
    want_pass = forward(support.MODELS)
    want = {variant: chain(support.MODELS, variant) for variant in support.VARIANTS}

    def clips(root: Path, dtype: str = "float32", precision: str = "bf16") -> list[float]:
        return [
            100 * relative(got, latents)
            for variant in support.VARIANTS
            for got, latents in zip(chain(root, variant, dtype, precision), want[variant], strict=True)
        ]

    def row(
        name: str, stored: dict[str, tuple[Tensor, Tensor]], one_pass: Tensor, found: list[float]
    ) -> tuple[Cell, ...]:
        layers = {layer: 100 * relative(got, plain) for layer, (got, plain) in stored.items()}
        by_layer[name] = {layer: error for layer, error in layers.items() if layer.startswith("high ")}
        mean, worst = statistics.mean(layers.values()), max(layers.values())
        return name, mean, worst, 100 * relative(one_pass, want_pass), *found

    rows: list[tuple[Cell, ...]] = []
    for number, (name, write) in enumerate(FORMATS.items()):
        progress(f"format {number + 1} of {len(FORMATS)}: {name}")
        root = support.copy_models(folder / str(number))
        stored = store(root, write)
        rows.append(row(name, stored, forward(root), clips(root)))
        if name == "bf16":
            rows.append(("bf16, computed in bf16", None, None, None, *clips(root, "bfloat16")))
        shutil.rmtree(root)
    progress("held in int8")
    plain = support.MODELS
    found = clips(plain, precision="int8")
    rows.append(row(HELD, hold(plain), forward(plain, int8=True), found))
    found = clips(plain, "bfloat16", "int8")
    rows.append((f"{HELD}, computed in bf16", None, None, None, *found))
    layers: list[tuple[Cell, ...]] = [
        (layer, *(by_layer[name][layer] for name in SHOWN)) for layer in by_layer[HELD]
    ]
    return rows, layers


def random_weights(width: int, blocks: int) -> Plain:
    """An expert of that width by Wan's own names, in float32."""
    from diffusers import WanTransformer3DModel
    from test_svi_loading import native_name

    model = WanTransformer3DModel(
        num_attention_heads=width // 128,
        attention_head_dim=128,
        in_channels=36,
        num_layers=blocks,
        ffn_dim=width * 3,
        text_dim=width,
        freq_dim=256,
    )
    return {native_name(name): tensor.detach() for name, tensor in model.state_dict().items()}


def load_alone(folder: Path) -> None:
    """Load the expert of a folder in bfloat16; leave the peak memory and the model's size in a file."""
    from diffusers import WanTransformer3DModel  # noqa: F401 - so that importing is not measured

    (file,) = (each for each in folder.iterdir() if each.stem == "expert")
    files, none = ModelFiles((file,), None), ModelFiles((), None)
    load_tiny()
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    before = _status("VmRSS")
    paths = ModelPaths(files, files, none, none, folder)
    model = Experts(paths, Placement(support.CPU, torch.bfloat16), "torch-flash").use("high")
    held = sum(parameter.nbytes for parameter in model.parameters()) / 1e6
    largest = max(parameter.numel() for parameter in model.parameters()) * 4 / 1e6
    peak = _status("VmHWM") - before
    (folder / OUT).write_text(json.dumps({"model": held, "peak": peak, "largest": largest}), "utf-8")


def load_tiny() -> None:
    """Load the tiny expert, so that everything that is imported on the way is there."""
    support.find_models(support.MODELS)
    forward(support.MODELS)


def memory(folder: Path, width: int, blocks: int) -> list[tuple[Cell, ...]]:
    """A row for each format: how much memory loading takes beyond the model."""
    plain = random_weights(width, blocks)
    chosen = ("bf16", "fp8 e4m3, a scale per tensor", "int8, scales per row", "GGUF Q8_0", "GGUF Q4_0")
    rows: list[tuple[Cell, ...]] = []
    for number, name in enumerate(chosen):
        progress(f"memory {number + 1} of {len(chosen)}: {name}")
        place = folder / f"memory-{number}"
        place.mkdir()
        FORMATS[name](place / "expert", plain)
        (file,) = place.iterdir()
        runs = []
        for _ in range(RUNS):
            run_alone((sys.executable, __file__, "--child", place), folder)
            runs.append(json.loads((place / OUT).read_text("utf-8")))
        found = min(runs, key=lambda run: run["peak"])
        rows.append(
            (
                *(name, file.stat().st_size / 1e6, found["model"], found["peak"]),
                *(found["peak"] - found["model"], found["largest"]),
            )
        )
        shutil.rmtree(place)
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--width", type=int, default=768, help="of the expert whose memory is measured")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--child", type=Path, help="load the expert in this folder, for its parent")
    chosen = parser.parse_args()
    if chosen.child:
        load_alone(chosen.child)
        return
    with workplace() as folder:
        loading = memory(folder, chosen.width, chosen.blocks)
        rows, layers = quality(folder)
    columns = ("format", "layer, mean %", "layer, worst %", "pass %")
    clips = tuple(f"{variant} clip {clip} %" for variant in support.VARIANTS for clip in (1, 2, 3))
    tables = (
        Table("Difference from float32", (*columns, *clips), tuple(rows)),
        Table("Difference of each linear layer, %", ("layer", *SHOWN), tuple(layers)),
        Table(
            "Peak memory while loading into bfloat16, MB",
            ("format", "file", "model", "peak", "beyond the model", "largest tensor in float32"),
            tuple(loading),
        ),
    )
    findings = [
        Finding(f"{name}: layers, pass", f"{shown(layer)} %, {shown(one)} %")
        for name, layer, _, one, *_ in rows
        if layer is not None
    ]
    beyond = max(
        row[4] / row[5] for row in loading if isinstance(row[4], float) and isinstance(row[5], float)
    )
    findings.append(Finding("loading: memory beyond the model", f"{shown(beyond)} x the largest tensor"))
    settings = {"width": chosen.width, "blocks": chosen.blocks}
    question = "what does each weight format cost in quality, and what does loading it cost in memory?"
    result = Result("weights", question, settings, tables, tuple(findings), (ABOUT, COLUMNS))
    finish(result, write=chosen.write)


if __name__ == "__main__":
    main()
