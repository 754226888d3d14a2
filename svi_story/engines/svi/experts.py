"""Which expert is on the device, and with which LoRAs."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from svi_story.engines.svi.attention import use_kernel
from svi_story.engines.svi.memory import RESIDENT, pin, stream_blocks
from svi_story.engines.svi.weights.catalogue import EXPERTS
from svi_story.engines.svi.weights.loading import Blueprint, load_transformer, read_transformer
from svi_story.engines.svi.weights.lora import merge, recipes
from svi_story.errors import collect_problems
from svi_story.events import ModelLoaded, ModelLoading, ModelMoved

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from diffusers import WanTransformer3DModel
    from torch import Tensor

    from svi_story.engines.svi.memory import MemoryPlan
    from svi_story.engines.svi.weights.catalogue import Expert, ModelPaths
    from svi_story.engines.svi.weights.loading import Placement
    from svi_story.engines.svi.weights.lora import LoraUse, Recipe
    from svi_story.engines.svi.weights.tensors import StoredTensor
    from svi_story.events import Reporter

    ExpertLoras = Mapping[Expert, Sequence[LoraUse]]
    """The LoRAs of each expert, in the order they are added."""


class Experts:
    """Both experts, loaded when they are first used, and where the memory mode puts them.

    A weight in memory is a function of its stored value and its recipe alone, always computed on the device:
    it does not matter what was merged before, where it was kept, nor whether it was loaded again.
    """

    def __init__(
        self,
        paths: ModelPaths,
        placement: Placement,
        kernel: str,
        plan: MemoryPlan = RESIDENT,
        report: Reporter = lambda _: None,
    ) -> None:
        self._paths = paths
        self._placement = placement
        self._kernel = kernel
        self._plan = plan
        self._report = report
        self._blueprints: dict[Expert, Blueprint] = {}
        self._wanted: dict[Expert, dict[str, Recipe]] = {"high": {}, "low": {}}
        self._merged: dict[Expert, dict[str, Recipe]] = {}
        self._models: dict[Expert, WanTransformer3DModel] = {}
        self._ready: Expert | None = None
        """The expert that was brought to the device last; None when both have left it."""

    @property
    def held(self) -> set[Expert]:
        """The experts in memory."""
        return set(self._models)

    def set_plan(self, plan: MemoryPlan) -> None:
        """Change the memory mode; what was loaded is freed."""
        self.free()
        self._plan = plan

    def blueprint(self, expert: Expert) -> Blueprint:
        """What an expert's files say about it. Raises InputError for bad files."""
        if expert not in self._blueprints:
            self._blueprints[expert] = read_transformer(self._paths.expert(expert))
        return self._blueprints[expert]

    def setting(self, expert: Expert, name: str) -> int:
        """One of an expert's settings, as `attention_head_dim`. Raises InputError for bad files."""
        value = self.blueprint(expert).settings[name]
        assert isinstance(value, int)
        return value

    def recipes(self, loras: ExpertLoras) -> dict[Expert, dict[str, Recipe]]:
        """What a set of LoRAs changes in each expert. Raises InputError with every problem of every file."""

        def of(expert: Expert) -> dict[str, Recipe]:
            shapes = {name: entry.shape for name, entry in self.blueprint(expert).entries.items()}
            return recipes(loras[expert], shapes)

        return dict(zip(EXPERTS, collect_problems([partial(of, expert) for expert in EXPERTS]), strict=True))

    def set_loras(self, loras: ExpertLoras) -> None:
        """Set the LoRAs of the next segment, merged when an expert is used. Raises InputError as above."""
        self._wanted = self.recipes(loras)

    def use(self, expert: Expert) -> WanTransformer3DModel:
        """An expert to compute with, with the LoRAs that were set. Raises InputError for wrong weights."""
        if self._ready != expert:
            self._offload_others(expert)
        if expert not in self._models:
            with self._timed(ModelLoaded, expert):
                self._load(expert)
        else:
            if self._merged[expert] is not self._wanted[expert]:
                self._merge_again(expert)
            if self._ready != expert and self._plan.mode == "offload":
                with self._timed(ModelMoved, expert):
                    self._models[expert].to(self._placement.device)
        self._ready = expert
        return self._models[expert]

    @contextmanager
    def _timed(self, kind: type[ModelLoaded | ModelMoved], expert: Expert) -> Iterator[None]:
        """Report what was done with an expert, and how long it took."""
        start = time.monotonic()
        yield
        size = sum(parameter.nbytes for parameter in self._models[expert].parameters())
        self._report(kind(expert, size, round(time.monotonic() - start, 3)))

    def leave_device(self) -> bool:
        """Make room for the VAE, where the memory mode asks for it; whether an expert was moved."""
        if self._plan.mode != "offload" or self._ready is None:
            return False
        self._offload_others(None)
        self._ready = None
        return True

    def free(self) -> None:
        """Free the memory of both."""
        self._models.clear()
        self._merged.clear()
        self._ready = None

    def _offload_others(self, expert: Expert | None) -> None:
        """Take the other experts off the device, into RAM or away. Streamed ones are in RAM all the time."""
        if self._plan.mode == "resident":
            return
        for other in [held for held in self._models if held != expert]:
            if not self._plan.keep:
                del self._models[other], self._merged[other]
            elif self._plan.mode == "offload":
                self._models[other].to("cpu")

    def _load(self, expert: Expert) -> None:
        import torch

        wanted = self._wanted[expert]
        streamed = self._plan.mode == "stream"
        total = sum(prod(entry.shape) for entry in self.blueprint(expert).entries.values())
        loading = _Loading(expert, total * self._placement.dtype.itemsize, self._report)

        def prepare(name: str, entry: StoredTensor) -> Tensor:
            recipe = wanted.get(name)
            weight = (
                merge(entry, recipe, self._placement) if recipe is not None else self._placement.take(entry)
            )
            loading.add(weight.nbytes)
            return pin(name, weight) if streamed else weight

        home = torch.device("cpu") if streamed else self._placement.device
        model = load_transformer(self.blueprint(expert), home, prepare)
        use_kernel(model, self._kernel)
        if streamed:
            stream_blocks(model, self._placement.device)
        self._models[expert], self._merged[expert] = model, wanted

    def _merge_again(self, expert: Expert) -> None:
        """Compute the weights whose recipe changed again from the files; all others stay as they are."""
        wanted, merged = self._wanted[expert], self._merged.pop(expert)
        model = self._models.pop(expert)  # gone when this fails half-way
        weights = dict(model.named_parameters())
        entries = self.blueprint(expert).entries
        changed = sorted(name for name in {*wanted, *merged} if wanted.get(name) != merged.get(name))
        if self._plan.mode == "stream" and any(weights[name].is_cuda for name in changed):
            self._load(expert)  # a pass was cut short, and what is written on the device would be lost
            return
        for name in changed:
            weights[name].copy_(merge(entries[name], wanted.get(name, ()), self._placement))
        self._models[expert], self._merged[expert] = model, wanted


LOADING_SECONDS = 0.5
"""Seconds between two reports of how far the loading is."""


class _Loading:
    """Reports how far the loading of a model is."""

    def __init__(self, model: str, total: int, report: Reporter) -> None:
        self._model, self._total, self._report = model, total, report
        self._done, self._reported = 0, 0.0

    def add(self, count: int) -> None:
        """More bytes are loaded."""
        self._done += count
        if time.monotonic() - self._reported > LOADING_SECONDS:
            self._reported = time.monotonic()
            self._report(ModelLoading(self._model, self._done, self._total))
