"""The sampling loop: it does not wait for the device, and computes once what stays the same, to the bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import svi_support as support
import torch
from diffusers import WanTransformer3DModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from svi_story.engines.svi import engine as engine_module
from svi_story.engines.svi.sampler import Inputs, denoise, guided, make_steps
from svi_story.enginespec.sampling import Guidance

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from svi_story.engines.svi.sampler import Step
    from svi_story.plan.model import Segment

META = torch.device("meta")


class OnTheDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types none of it
    """Lets no operation take a tensor from elsewhere, nor make one there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def check(tensor: Tensor) -> Tensor:
            assert tensor.device == META, f"{func} with a tensor of the {tensor.device}"
            return tensor

        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, check, (args, kwargs, made))
        return made


class NothingFromTheHost(TorchFunctionMode):
    """Lets no tensor be made of numbers on the host, which a GPU waits for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor, torch.from_numpy), f"{func} in the loop"
        return func(*args, **(kwargs or {}))


def test_the_loop_neither_waits_for_the_device_nor_brings_it_anything() -> None:
    """Tensors without numbers: what would read one is an error of torch."""
    sizes = {"num_attention_heads": 1, "ffn_dim": 64, "num_layers": 2, "text_dim": 32}
    with META:
        model = WanTransformer3DModel(in_channels=36, **sizes).requires_grad_(requires_grad=False)
        texts = [torch.empty(1, 512, 32) for _ in range(2)]
        x, y, timesteps = torch.empty(1, 16, 2, 4, 4), torch.empty(1, 20, 2, 4, 4), torch.empty(4)
    steps = make_steps(support.sampler(steps=4, guidance=Guidance(5.0, 1.0)))
    assert {step.guidance for step in steps} == {5.0, 1.0}
    done: list[int] = []
    with OnTheDevice(), NothingFromTheHost():  # type: ignore[no-untyped-call]  # as above
        predict = guided(Inputs(y, texts[0], texts[1], timesteps), lambda _: model)
        made = denoise(x, steps, predict, lambda number, _x, _velocity: done.append(number))
    assert made.shape == x.shape
    assert done == [1, 2, 3, 4]


def plainly(inputs: Inputs, expert: Callable[[Any], Any]) -> Callable[[Tensor, Step], Tensor]:
    """As `guided`; all is computed for each pass."""

    def predict(x_BCTHW: Tensor, step: Step) -> Tensor:
        def velocity(context_BLD: Tensor) -> Tensor:
            joined_BCTHW = torch.cat([x_BCTHW, inputs.y_BCTHW], dim=1)
            time = inputs.timestep_S[step.index : step.index + 1]
            made: Tensor = expert(step.expert)(joined_BCTHW, time, context_BLD, return_dict=False)[0]
            return made

        positive, negative = velocity(inputs.positive_BLD), velocity(inputs.negative_BLD)
        return negative + step.guidance * (positive - negative)

    return predict


def sample(options: dict[str, Any], segments: list[Segment]) -> list[Any]:
    with support.engine(**options) as svi:
        svi.prepare(segments)
        return [svi.sample(each, None, support.Memory(), support.ignore_step)["latents"] for each in segments]


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16", "memory": "stream"}, {"precision": "int8", "memory": "offload"}, {}],
    ids=["bfloat16", "int8", "float32"],
)
def test_what_is_computed_once_has_the_same_bits(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = support.segment(settings=support.sampler(steps=3))
    other_loras = support.segment(settings=support.sampler("2.0-pro", steps=3))
    segments = [first, other_loras, replace(first, negative_prompt=first.prompt, prompt="The sea.")]
    made = sample(options, segments)
    monkeypatch.setattr(engine_module, "guided", plainly)
    wanted = sample(options, segments)
    assert all(np.array_equal(*pair) for pair in zip(made, wanted, strict=True))
    assert not np.array_equal(made[0], made[1])


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of an expert's small parts computes."""
    from diffusers.models import embeddings
    from diffusers.models.transformers import transformer_wan

    counted: Counter[str] = Counter()

    def count(owner: Any) -> None:
        plain = owner.forward

        def forward(self: Any, *args: Any) -> Any:
            counted[owner.__name__] += 1
            return plain(self, *args)

        monkeypatch.setattr(owner, "forward", forward)

    for owner in (
        embeddings.PixArtAlphaTextProjection,
        embeddings.TimestepEmbedding,
        transformer_wan.WanRotaryPosEmbed,
    ):
        count(owner)
    return counted


def test_texts_positions_and_conditioning_are_taken_once(
    computed: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: Counter[int] = Counter()
    plain = engine_module._to_numpy

    def to_numpy(tensor: Tensor) -> Any:
        copied[tensor.shape[1]] += 1
        return plain(tensor)

    monkeypatch.setattr(engine_module, "_to_numpy", to_numpy)
    one = support.segment(settings=support.sampler(steps=6))
    experts = [step.expert for step in make_steps(one.sampler)]
    assert set(experts) == {"high", "low"}
    memory = support.Memory()
    with support.engine(checkpoint_every=1) as svi:
        svi.prepare([one])
        svi._preview_factors = np.zeros((17, 3), np.float32)
        svi.sample(one, None, memory, support.ignore_step)
    assert computed == {
        "PixArtAlphaTextProjection": 2 * 2,
        "TimestepEmbedding": len(experts),
        "WanRotaryPosEmbed": 2,
    }
    assert len(memory.saved) == len(experts) - 1
    assert copied == {16: len(experts), 20: 1}
