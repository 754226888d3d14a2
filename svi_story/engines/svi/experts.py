"""Which expert is on the device, and with which LoRAs."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.attention import use_kernel
from svi_story.engines.svi.layout import EXPERTS
from svi_story.engines.svi.loading import Blueprint, load_transformer, read_transformer
from svi_story.engines.svi.lora import merge, recipes
from svi_story.engines.svi.memory import RESIDENT
from svi_story.engines.svi.streaming import pin, stream_blocks
from svi_story.engines.svi.together import all_of
from svi_story.events import ModelLoaded, ModelMoved

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from diffusers import WanTransformer3DModel
    from torch import Tensor

    from svi_story.engines.svi.layout import Expert, Layout
    from svi_story.engines.svi.loading import Place
    from svi_story.engines.svi.lora import Recipe, Use
    from svi_story.engines.svi.memory import Choice
    from svi_story.engines.svi.tensors import Entry
    from svi_story.events import Reporter

    Uses = Mapping[Expert, Sequence[Use]]
    """The LoRAs of each expert, in the order they are added."""


class Experts:
    """Both experts, loaded when they are first used, and where they are by the memory rung.

    A weight in memory is a function of its stored value and its recipe alone, always computed on the device:
    it does not matter what was merged before, where it was kept, nor whether it was loaded again.
    """

    def __init__(
        self,
        layout: Layout,
        place: Place,
        kernel: str,
        choice: Choice = RESIDENT,
        report: Reporter = lambda _: None,
    ) -> None:
        self._layout = layout
        self._place = place
        self._kernel = kernel
        self._choice = choice
        self._report = report
        self._blueprints: dict[Expert, Blueprint] = {}
        self._wanted: dict[Expert, dict[str, Recipe]] = {"high": {}, "low": {}}
        self._merged: dict[Expert, dict[str, Recipe]] = {}
        self._models: dict[Expert, WanTransformer3DModel] = {}
        self._ready: Expert | None = None
        """The expert that was brought to the device last; nobody's when all have left it."""

    @property
    def held(self) -> set[Expert]:
        """The experts in memory."""
        return set(self._models)

    def settle(self, choice: Choice) -> None:
        """Take another memory rung; what was loaded is given back."""
        self.free()
        self._choice = choice

    def blueprint(self, expert: Expert) -> Blueprint:
        """What an expert's files say about it. Raises InputError for bad files."""
        if expert not in self._blueprints:
            self._blueprints[expert] = read_transformer(self._layout.expert(expert))
        return self._blueprints[expert]

    def setting(self, expert: Expert, name: str) -> int:
        """One of an expert's settings, as `attention_head_dim`. Raises InputError for bad files."""
        value = self.blueprint(expert).settings[name]
        assert isinstance(value, int)
        return value

    def recipes(self, uses: Uses) -> dict[Expert, dict[str, Recipe]]:
        """What a set of LoRAs changes in each expert. Raises InputError with every problem of every file."""

        def of(expert: Expert) -> dict[str, Recipe]:
            shapes = {name: entry.shape for name, entry in self.blueprint(expert).entries.items()}
            return recipes(uses[expert], shapes)

        return dict(zip(EXPERTS, all_of([partial(of, expert) for expert in EXPERTS]), strict=True))

    def equip(self, uses: Uses) -> None:
        """Say which LoRAs come next; they are merged when an expert is used. Raises InputError as above."""
        self._wanted = self.recipes(uses)

    def use(self, expert: Expert) -> WanTransformer3DModel:
        """An expert to compute with, with the LoRAs asked for. Raises InputError for wrong weights."""
        if self._ready != expert:
            self._make_way(expert)
        if expert not in self._models:
            with self._timed(ModelLoaded, expert):
                self._load(expert)
        else:
            if self._merged[expert] is not self._wanted[expert]:
                self._merge_again(expert)
            if self._ready != expert and self._choice.rung == "offload":
                with self._timed(ModelMoved, expert):
                    self._models[expert].to(self._place.device)
        self._ready = expert
        return self._models[expert]

    @contextmanager
    def _timed(self, kind: type[ModelLoaded | ModelMoved], expert: Expert) -> Iterator[None]:
        """Tell what was done with an expert, and how long it took."""
        start = time.monotonic()
        yield
        size = sum(parameter.nbytes for parameter in self._models[expert].parameters())
        self._report(kind(expert, size, round(time.monotonic() - start, 3)))

    def leave_device(self) -> bool:
        """Leave the device to the VAE, where the rung does not keep all on it; whether somebody had to go."""
        if self._choice.rung != "offload" or self._ready is None:
            return False
        self._make_way(None)
        self._ready = None
        return True

    def free(self) -> None:
        """Give back the memory of both."""
        self._models.clear()
        self._merged.clear()
        self._ready = None

    def _make_way(self, expert: Expert | None) -> None:
        """Take the other experts off the device, into RAM or away. Streamed ones are in RAM all the time."""
        if self._choice.rung == "resident":
            return
        for other in [held for held in self._models if held != expert]:
            if not self._choice.keep:
                self._forget(other)
            elif self._choice.rung == "offload":
                self._models[other].to("cpu")

    def _forget(self, expert: Expert) -> None:
        del self._models[expert], self._merged[expert]

    def _load(self, expert: Expert) -> None:
        import torch

        wanted = self._wanted[expert]
        streamed = self._choice.rung == "stream"

        def prepare(name: str, entry: Entry) -> Tensor:
            recipe = wanted.get(name)
            weight = merge(entry, recipe, self._place) if recipe is not None else self._place.take(entry)
            return pin(name, weight) if streamed else weight

        home = torch.device("cpu") if streamed else self._place.device
        model = load_transformer(self.blueprint(expert), home, prepare)
        use_kernel(model, self._kernel)
        if streamed:
            stream_blocks(model, self._place.device)
        self._models[expert], self._merged[expert] = model, wanted

    def _merge_again(self, expert: Expert) -> None:
        """Make the weights whose recipe changed anew from the files; all others stay as they are."""
        wanted, merged = self._wanted[expert], self._merged.pop(expert)
        model = self._models.pop(expert)  # not to be used when this fails half-way
        weights = dict(model.named_parameters())
        entries = self.blueprint(expert).entries
        changed = sorted(name for name in {*wanted, *merged} if wanted.get(name) != merged.get(name))
        if self._choice.rung == "stream" and any(weights[name].is_cuda for name in changed):
            self._load(expert)  # a pass was cut short, and what is written on the device would be lost
            return
        for name in changed:
            weights[name].copy_(merge(entries[name], wanted.get(name, ()), self._place))
        self._models[expert], self._merged[expert] = model, wanted
