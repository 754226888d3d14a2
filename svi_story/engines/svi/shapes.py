"""Do the tensors in the files make these models? Built without memory, then compared, then looked into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.engines.svi import architecture as arch
from svi_story.engines.svi.digests import name_of
from svi_story.engines.svi.inspection import gathered, pair_of
from svi_story.engines.svi.layout import EXPERTS, find_model
from svi_story.engines.svi.loading import check_same, read_transformer
from svi_story.engines.svi.lora import Use, read_lora
from svi_story.engines.svi.tensors import FLOATS, is_finite, read_header, read_headers
from svi_story.engines.svi.together import few
from svi_story.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from svi_story.engines.svi.digests import Progress
    from svi_story.engines.svi.layout import Expert, ModelFiles
    from svi_story.engines.svi.stock import Holding
    from svi_story.engines.svi.tensors import Entry

    Shapes = Mapping[str, tuple[int, ...]]


def check_shapes(root: Path, whole: Sequence[Holding], problems: list[Problem]) -> None:
    """Add whatever keeps the files from being these models, and the LoRAs from fitting the experts."""
    names = {held.part.name for held in whole}
    experts: dict[Expert, Shapes] = {}
    for expert in EXPERTS:
        if expert in names:
            with gathered(problems):
                blueprint = read_transformer(find_model(root, expert))
                experts[expert] = {name: entry.shape for name, entry in blueprint.entries.items()}
    if "vae" in names:
        with gathered(problems):
            _check_vae(find_model(root, "vae"))
    if "text_encoder" in names:
        with gathered(problems):
            _check_text_encoder(find_model(root, "text_encoder"))
    if len(experts) == len(EXPERTS):
        problems += _differences(experts["high"], experts["low"])
    _check_loras(whole, experts, problems)


def _check_vae(files: ModelFiles) -> None:
    from diffusers import AutoencoderKLWan

    entries = read_headers(files.weights)
    entries = arch.by_name(entries, arch.name_vae(entries))
    settings = arch.vae_settings(entries, arch.read_config(files.config))
    _compare(lambda: AutoencoderKLWan(**settings), entries)


def _check_text_encoder(files: ModelFiles) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    entries = read_headers(files.weights)
    if arch.TIED[1] in entries:
        entries.pop(arch.TIED[0], None)
    entries = arch.by_name(entries, arch.name_text_encoder(entries))
    settings = arch.text_encoder_settings(entries, arch.read_config(files.config))

    def build() -> UMT5EncoderModel:
        model = UMT5EncoderModel(UMT5Config(**settings))
        model.encoder.embed_tokens = model.shared
        return model

    _compare(build, entries)


def _compare(build: Callable[[], nn.Module], entries: Mapping[str, Entry]) -> None:
    """Raises InputError unless the files hold exactly a model's tensors; it is built without memory."""
    import torch

    with torch.device("meta"):
        model = build()
    check_same(model, entries)


def _differences(high: Shapes, low: Shapes) -> list[Problem]:
    wrong = sorted(name for name in {*high, *low} if high.get(name) != low.get(name))
    what = "{}: {} in the high-noise expert, {} in the low-noise one; they are not of one model"
    return few([Problem(what.format(name, high.get(name), low.get(name))) for name in wrong])


def _check_loras(whole: Sequence[Holding], experts: Mapping[Expert, Shapes], problems: list[Problem]) -> None:
    for held in whole:
        pair = pair_of(held)
        for expert, shapes in experts.items():
            if pair:
                with gathered(problems):
                    read_lora(Use(pair.of(expert), 1.0, whole=held.part.name != "distill"), shapes)


def check_numbers(whole: Sequence[Holding], problems: list[Problem], progress: Progress) -> None:
    """Add every tensor that holds NaN or infinite numbers."""
    for held in whole:
        for file in held.files:
            if file.suffix == ".safetensors":
                problems += few(_not_finite(file, progress))


def _not_finite(file: Path, progress: Progress) -> list[Problem]:
    entries = [entry for entry in read_header(file).values() if entry.dtype in FLOATS]
    found: list[Problem] = []
    for done, entry in enumerate(entries, 1):
        if not is_finite(entry.read()):
            what = f"{entry.key} holds NaN or infinite numbers; download it again"
            found.append(Problem(what, file=str(file)))
        progress(f"{name_of(file)}: numbers", done, len(entries))
    return found
