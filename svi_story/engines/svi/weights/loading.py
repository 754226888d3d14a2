"""Models from files: checked tensor by tensor, straight into their place, never held twice."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.engines.svi.streaming import PlacedModel
from svi_story.engines.svi.weights import architecture as arch
from svi_story.engines.svi.weights.formats import read_shards
from svi_story.engines.svi.weights.lora import merge
from svi_story.engines.svi.weights.tensors import StoredTensor, is_finite
from svi_story.errors import InputError, Problem, shorten_problems
from svi_story.events import ModelLoading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from torch import Tensor, nn
    from transformers import UMT5EncoderModel

    from svi_story.engines.svi.weights.catalogue import ModelFiles
    from svi_story.engines.svi.weights.lora import Recipe
    from svi_story.events import Reporter

    Take = Callable[[str, StoredTensor], Mapping[str, Tensor]]
    """From a tensor on disk and its name to the parameters that it becomes, by their names, on the device."""


@dataclass(frozen=True)
class Placement:
    """Where weights go, and as what."""

    device: torch.device
    dtype: torch.dtype
    int8: bool = False
    """Whether the linear layers in an expert's blocks are held in int8 (quantized.py)."""

    def take(self, name: str, entry: StoredTensor) -> Mapping[str, Tensor]:
        """A stored tensor as it will be used, by its name: a copy of its own, rounded once."""
        tensor = entry.read(self.device)
        return {name: tensor.to(self.dtype, copy=tensor.device.type == "cpu")}

    def take_merged(self, name: str, entry: StoredTensor, recipe: Recipe | None) -> Mapping[str, Tensor]:
        """An expert's weight with its LoRAs, as its parameters: merged in float32, rounded or quantised once.

        Raises InputError as `merge` does.
        """
        if self.int8 and arch.is_quantized(name, entry.shape):
            from svi_story.engines.svi.weights.quantized import quantize

            return quantize(name, merge(entry, recipe or (), self.device))
        if recipe is None:
            return self.take(name, entry)
        return {name: merge(entry, recipe, self.device).to(self.dtype)}


@dataclass(frozen=True)
class Blueprint:
    """A model's tensors on disk by the library's names, and the settings that build its modules."""

    entries: Mapping[str, StoredTensor]
    settings: Mapping[str, object]


LOADING_SECONDS = 0.5
"""Seconds between two reports of how far the loading is."""


class LoadingProgress:
    """Reports how far the reading of a model's files is; `sizes` are its tensors' bytes there."""

    def __init__(self, model: str, sizes: Mapping[str, int], report: Reporter) -> None:
        self._model, self._sizes, self._report = model, sizes, report
        self.total = sum(sizes.values())
        self._done, self._reported = 0, time.monotonic()
        report(ModelLoading(model, 0, self.total))

    def add(self, name: str) -> None:
        """One more tensor was read."""
        self._done += self._sizes[name]
        if time.monotonic() - self._reported > LOADING_SECONDS:
            self._reported = time.monotonic()
            self._report(ModelLoading(self._model, self._done, self.total))


def _progress(model: str, blueprint: Blueprint, report: Reporter) -> LoadingProgress:
    return LoadingProgress(model, {name: entry.nbytes for name, entry in blueprint.entries.items()}, report)


def read_transformer(files: ModelFiles) -> Blueprint:
    """An expert as its files describe it. Raises InputError naming every tensor that is wrong; reads none."""
    entries = read_shards(files.weights)
    entries = arch.by_name(entries, arch.name_transformer(entries))
    blueprint = Blueprint(entries, arch.transformer_settings(entries, arch.read_config(files.config)))
    check_same(_empty_transformer(blueprint), entries)
    return blueprint


def read_vae(files: ModelFiles) -> Blueprint:
    """The VAE as its files describe it. Raises InputError as `read_transformer` does."""
    entries = read_shards(files.weights)
    entries = arch.by_name(entries, arch.name_vae(entries))
    blueprint = Blueprint(entries, arch.vae_settings(entries, arch.read_config(files.config)))
    check_same(_empty_vae(blueprint), entries)
    return blueprint


def read_text_encoder(files: ModelFiles) -> Blueprint:
    """The UMT5 encoder as its files describe it. Raises InputError as `read_transformer` does."""
    entries = read_shards(files.weights)
    if arch.TIED[1] in entries:
        entries.pop(arch.TIED[0], None)
    entries = arch.by_name(entries, arch.name_text_encoder(entries))
    blueprint = Blueprint(entries, arch.text_encoder_settings(entries, arch.read_config(files.config)))
    check_same(_empty_text_encoder(blueprint), entries)
    return blueprint


def load_transformer(
    blueprint: Blueprint,
    placement: Placement,
    take: Take,
    resident: int | None = None,
    *,
    keep: bool = False,
    progress: LoadingProgress | None = None,
) -> PlacedModel:
    """One expert, on the device with `resident` of its blocks (None: all); `keep` as in PlacedModel.

    Raises InputError naming every tensor with NaN or Inf.
    """
    model = typed_transformer(blueprint, placement)
    rope = model.rope  # its tables are computed, not stored; on "meta" there are none
    model.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len).to(placement.device)
    resident = len(model.blocks) if resident is None else resident
    placed = PlacedModel(model, model.blocks, placement.device, resident, keep=keep)
    read_weights(blueprint.entries, take, placed.write, progress)
    placed.to_device()
    model.eval()
    return placed


def typed_transformer(blueprint: Blueprint, placement: Placement) -> WanTransformer3DModel:
    """An expert on "meta", with its parameters in the types and layers that they are held in."""
    model = _empty_transformer(blueprint)
    _convert(model, placement.dtype)
    if placement.int8:
        from svi_story.engines.svi.weights.quantized import quantize_linears

        quantize_linears(model.blocks)
    return model


def load_vae(files: ModelFiles, placement: Placement, report: Reporter = lambda _: None) -> AutoencoderKLWan:
    """The VAE. Raises InputError for bad files and naming every tensor that is wrong."""
    blueprint = read_vae(files)
    model = _empty_vae(blueprint)
    state: dict[str, Tensor] = {}
    read_weights(blueprint.entries, placement.take, state.__setitem__, _progress("vae", blueprint, report))
    model.load_state_dict(state, strict=False, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.requires_grad_(requires_grad=False).eval()


def load_text_encoder(
    files: ModelFiles,
    placement: Placement,
    resident: int | None = None,
    report: Reporter = lambda _: None,
) -> UMT5EncoderModel:
    """The UMT5 encoder, with `resident` of its blocks on the device (None: all), the others streamed.

    Raises InputError for bad files and naming every tensor that is wrong.
    """
    blueprint = read_text_encoder(files)
    model = _empty_text_encoder(blueprint)
    _convert(model, placement.dtype)
    blocks = model.encoder.block
    resident = len(blocks) if resident is None else resident
    placed = PlacedModel(model, blocks, placement.device, resident, keep=False)
    read_weights(blueprint.entries, placement.take, placed.write, _progress("text", blueprint, report))
    placed.to_device()
    return model.eval()


def _empty_transformer(blueprint: Blueprint) -> WanTransformer3DModel:
    """An expert without memory behind its weights."""
    import torch
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel(**blueprint.settings)


def _empty_vae(blueprint: Blueprint) -> AutoencoderKLWan:
    import torch
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        return AutoencoderKLWan(**blueprint.settings)


def _empty_text_encoder(blueprint: Blueprint) -> UMT5EncoderModel:
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        # Eager attention is Wan's own formula: softmax in float32, the same on every machine.
        model = UMT5EncoderModel(UMT5Config(**blueprint.settings, attn_implementation="eager"))
    model.encoder.embed_tokens = model.shared
    return model


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every weight of a model on "meta" a type. (The libraries' own `to` warns about it.)"""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def read_weights(
    entries: Mapping[str, StoredTensor],
    take: Take,
    write: Callable[[str, Tensor], None],
    progress: LoadingProgress | None = None,
) -> None:
    """Take every weight from its file and give it to a model. Waits for the device once.

    Raises InputError naming every tensor with NaN or Inf.
    """
    import torch

    finite: list[Tensor] = []
    read: list[StoredTensor] = []
    for name, entry in entries.items():
        for parameter, weight in take(name, entry).items():
            if weight.is_floating_point():  # where there is none, the scales show it
                finite.append(is_finite(weight))  # where it was computed: a CPU would take seconds
                read.append(entry)
            write(parameter, weight)
        if progress is not None:
            progress.add(name)
    flags = _fetch(torch.stack(finite)) if finite else ()
    bad = [entry for entry, good in zip(read, flags, strict=True) if not good]
    if bad:
        what = "{} holds NaN or Inf; download it again"
        raise InputError(
            *shorten_problems([Problem(what.format(entry.key), file=str(entry.file)) for entry in bad])
        )


def _fetch(flags: Tensor) -> list[bool]:
    """Wait for the device, and tell what it found."""
    found: list[bool] = flags.cpu().tolist()
    return found


def check_same(model: nn.Module, entries: Mapping[str, StoredTensor]) -> None:
    """Raises InputError unless a model has exactly these tensors in exactly these shapes."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    file = str(next(iter(entries.values())).file)
    missing = [Problem(f"{name} is missing", file=file) for name in shapes if name not in entries]
    surplus = [
        Problem(f"{entry.key} is not known to the model", file=str(entry.file))
        for name, entry in entries.items()
        if name not in shapes
    ]
    wrong = [
        Problem(
            f"{entry.key} has the shape {list(entry.shape)}; expected {list(shapes[name])}",
            file=str(entry.file),
        )
        for name, entry in entries.items()
        if name in shapes and entry.shape != shapes[name]
    ]
    if missing or surplus or wrong:
        raise InputError(*shorten_problems(missing), *shorten_problems(surplus), *shorten_problems(wrong))
