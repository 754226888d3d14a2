"""Which expert is on the device, and with which LoRAs."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.attention import use_kernel
from svi_story.engines.svi.compiled import compile_blocks
from svi_story.engines.svi.device import release
from svi_story.engines.svi.memory import RESIDENT
from svi_story.engines.svi.weights.architecture import weight_of
from svi_story.engines.svi.weights.candidates import EXPERTS
from svi_story.engines.svi.weights.loading import (
    Blueprint,
    LoadingProgress,
    load_transformer,
    read_transformer,
    read_weights,
)
from svi_story.engines.svi.weights.lora import recipes
from svi_story.engines.svi.weights.read_ahead import ReadAhead
from svi_story.errors import collect_problems
from svi_story.events import ModelLoaded, ModelMoved, ModelWorking

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from diffusers import WanTransformer3DModel
    from torch import Tensor

    from svi_story.engines.svi.memory import MemoryPlan
    from svi_story.engines.svi.streaming import PlacedModel
    from svi_story.engines.svi.weights.candidates import Expert
    from svi_story.engines.svi.weights.catalogue import ModelPaths
    from svi_story.engines.svi.weights.loading import Placement, Take
    from svi_story.engines.svi.weights.lora import LoraUse, Recipe
    from svi_story.engines.svi.weights.tensors import StoredTensor
    from svi_story.events import Reporter

    ExpertLoras = Mapping[Expert, Sequence[LoraUse]]
    """The LoRAs of each expert, in the order they are added."""
    FindPrepared = Callable[[Expert, Sequence[LoraUse], Blueprint], Mapping[str, StoredTensor] | None]
    """The parameters of an expert with these LoRAs as they were prepared; None where they were not."""


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
        find_prepared: FindPrepared = lambda _expert, _loras, _blueprint: None,
        *,
        compiled: bool = False,
    ) -> None:
        self._paths = paths
        self._placement = placement
        self._kernel = kernel
        self._compiled = compiled
        self._plan = plan
        self._report = report
        self._find_prepared = find_prepared
        self._loras: ExpertLoras = {"high": (), "low": ()}
        self._blueprints: dict[Expert, Blueprint] = {}
        self._wanted: dict[Expert, dict[str, Recipe]] = {"high": {}, "low": {}}
        self._merged: dict[Expert, dict[str, Recipe]] = {}
        self._models: dict[Expert, PlacedModel] = {}
        self._ahead = ReadAhead()

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
        self._loras, self._wanted = loras, self.recipes(loras)

    def use(self, expert: Expert) -> WanTransformer3DModel:
        """An expert to compute with, with the LoRAs that were set. Raises InputError for wrong weights."""
        if self._plan.mode != "resident":
            self._leave_device(other for other in EXPERTS if other != expert)
        if expert not in self._models:
            self._load(expert)
        elif self._merged[expert] is not self._wanted[expert]:
            self._merge_again(expert)
        placed = self._models[expert]
        if not placed.on_device:
            start = time.monotonic()
            placed.to_device(lambda done, total: self._report(ModelWorking(expert, done, total)))
            self._report(ModelMoved(expert, placed.moving_bytes(), _since(start)))
        return placed.model

    def leave_device(self) -> None:
        """Make room for another model, where the memory mode asks for it."""
        if self._plan.mode != "resident":
            self._leave_device(EXPERTS)

    def read_ahead(self, expert: Expert) -> None:
        """Begin to read an expert's files, if it is not in memory, while something else computes."""
        if expert not in self._models:
            self._ahead.start(entry.file for entry in self._stored(expert)[0].values())

    def close(self) -> None:
        """End what was begun to be read."""
        self._ahead.stop()

    def free(self) -> None:
        """Free the memory of both."""
        self._models.clear()
        self._merged.clear()
        release()  # diffusers' modules refer to each other in circles

    def _leave_device(self, experts: Iterable[Expert]) -> None:
        """Leave the device for RAM, where there is room for a copy; else be freed."""
        there = [expert for expert in experts if expert in self._models and self._models[expert].on_device]
        for expert in there:
            if self._plan.keep:
                self._models[expert].leave_device()
            else:
                del self._models[expert], self._merged[expert]
        if there:
            release()

    def _load(self, expert: Expert) -> None:
        start, plan = time.monotonic(), self._plan
        source, take, progress = self._source(expert)
        blocks = plan.resident_blocks if plan.mode == "stream" else None
        keep = plan.keep and plan.mode != "resident"
        placed = load_transformer(source, self._placement, take, blocks, keep=keep, progress=progress)
        use_kernel(placed.model, self._kernel)
        if self._compiled:
            compile_blocks(placed.model)
        self._models[expert], self._merged[expert] = placed, self._wanted[expert]
        self._report(ModelLoaded(expert, placed.nbytes(), _since(start), progress.total))
        for other in EXPERTS:
            self.read_ahead(other)

    def _merge_again(self, expert: Expert) -> None:
        """Read the weights whose recipe changed again from the files; all others stay as they are."""
        start = time.monotonic()
        wanted, merged = self._wanted[expert], self._merged.pop(expert)
        placed = self._models.pop(expert)  # gone when this fails half-way
        changed = {name for name in {*wanted, *merged} if wanted.get(name) != merged.get(name)}
        if changed:
            source, take, progress = self._source(expert, changed)
            read_weights(source.entries, take, placed.write, progress)
            self._report(ModelLoaded(expert, placed.nbytes(), _since(start), progress.total))
        self._models[expert], self._merged[expert] = placed, wanted

    def _stored(self, expert: Expert) -> tuple[Mapping[str, StoredTensor], bool]:
        """What an expert with its LoRAs is read from, and whether it was prepared."""
        blueprint = self.blueprint(expert)
        prepared = self._find_prepared(expert, self._loras[expert], blueprint)
        return blueprint.entries if prepared is None else prepared, prepared is not None

    def _source(
        self, expert: Expert, only: Container[str] | None = None
    ) -> tuple[Blueprint, Take, LoadingProgress]:
        """What an expert with its LoRAs is read from: a prepared file, or its sources.

        `only` are the weights to read, all by default.
        """
        blueprint, wanted = self.blueprint(expert), self._wanted[expert]
        stored, is_prepared = self._stored(expert)
        device, placement = self._placement.device, self._placement

        def take(name: str, entry: StoredTensor) -> Mapping[str, Tensor]:
            return placement.take_merged(name, entry, wanted.get(name))

        def take_prepared(name: str, entry: StoredTensor) -> Mapping[str, Tensor]:
            return {name: entry.read(device)}

        entries = {name: entry for name, entry in stored.items() if only is None or weight_of(name) in only}
        sizes = {name: entry.nbytes for name, entry in entries.items()}
        if not is_prepared:
            for name in sizes.keys() & wanted:
                sizes[name] += sum(change.nbytes for change in wanted[name])
        progress = LoadingProgress(expert, sizes, self._report)
        return replace(blueprint, entries=entries), take_prepared if is_prepared else take, progress


def _since(start: float) -> float:
    """Seconds, to the millisecond."""
    return round(time.monotonic() - start, 3)
