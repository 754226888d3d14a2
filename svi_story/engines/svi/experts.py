"""Which expert is on the device, and with which LoRAs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from svi_story.engines.svi.attention import use_kernel
from svi_story.engines.svi.layout import EXPERTS
from svi_story.engines.svi.loading import Blueprint, load_transformer, read_transformer
from svi_story.engines.svi.lora import merge, recipes
from svi_story.engines.svi.together import all_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from diffusers import WanTransformer3DModel

    from svi_story.engines.svi.layout import Expert, Layout
    from svi_story.engines.svi.loading import Place
    from svi_story.engines.svi.lora import Recipe, Use

    Uses = Mapping[Expert, Sequence[Use]]
    """The LoRAs of each expert, in the order they are added."""


class Experts:
    """Both experts, loaded when they are first used; `keep_both` false holds one at a time.

    A weight in memory is a function of its stored value and its recipe alone, so it does not matter what
    was merged before, nor whether the expert was kept or loaded again.
    """

    def __init__(self, layout: Layout, place: Place, kernel: str, *, keep_both: bool = True) -> None:
        self._layout = layout
        self._place = place
        self._kernel = kernel
        self._keep_both = keep_both
        self._blueprints: dict[Expert, Blueprint] = {}
        self._wanted: dict[Expert, dict[str, Recipe]] = {"high": {}, "low": {}}
        self._merged: dict[Expert, dict[str, Recipe]] = {}
        self._models: dict[Expert, WanTransformer3DModel] = {}

    @property
    def held(self) -> set[Expert]:
        """The experts in memory."""
        return set(self._models)

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
        """An expert on the device with the LoRAs asked for. Raises InputError for weights that are wrong."""
        wanted = self._wanted[expert]
        if expert not in self._models:
            self._load(expert)
        elif self._merged[expert] is not wanted:
            self._merge_again(expert)
        return self._models[expert]

    def free(self) -> None:
        """Give back the memory of both."""
        self._models.clear()
        self._merged.clear()

    def _load(self, expert: Expert) -> None:
        if not self._keep_both:
            self.free()
        wanted = self._wanted[expert]
        model = load_transformer(
            self.blueprint(expert),
            self._place.device,
            lambda name, entry: (
                merge(entry, wanted[name], self._place) if name in wanted else self._place.take(entry)
            ),
        )
        use_kernel(model, self._kernel)
        self._models[expert], self._merged[expert] = model, wanted

    def _merge_again(self, expert: Expert) -> None:
        """Make the weights whose recipe changed anew from the files; all others stay as they are."""
        wanted, merged = self._wanted[expert], self._merged.pop(expert)
        model = self._models.pop(expert)  # not to be used when this fails half-way
        weights = dict(model.named_parameters())
        entries = self.blueprint(expert).entries
        for name in sorted({*wanted, *merged}):
            if wanted.get(name) != merged.get(name):
                weights[name].copy_(merge(entries[name], wanted.get(name, ()), self._place))
        self._models[expert], self._merged[expert] = model, wanted
