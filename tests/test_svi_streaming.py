"""Streaming: the same bits however many blocks stay on the device; what is freed is freed at once."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import svi_support as support
import torch
from torch import Tensor, nn

from svi_story.engines.svi import streaming
from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.memory import MemoryPlan
from svi_story.engines.svi.streaming import BlockStreamer, PlacedModel, host_memory, spread
from svi_story.engines.svi.weights.loading import Placement, load_text_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.engines.svi.memory import MemoryMode
    from svi_story.engines.svi.weights.candidates import Expert

BLOCKS = 5
F32 = Placement(support.CPU, torch.float32)
X = torch.linspace(-1, 1, 6).view(2, 3)


class Block(nn.Module):
    """Weights of two types, one of them its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.table = nn.Parameter(torch.empty(1, 8, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x) + self.table.to(x.dtype))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = block(x)
        return x


def empty() -> Toy:
    with torch.device("meta"):
        return Toy()


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    named = empty().named_parameters()
    return {name: torch.randn(each.shape, generator=generator).to(each.dtype) for name, each in named}


def placed(resident: int, *, keep: bool = False) -> PlacedModel:
    model = empty()
    made = PlacedModel(model, model.blocks, support.CPU, resident, keep=keep)
    for name, weight in weights().items():
        made.write(name, weight)
    made.to_device()
    return made


def expected(seed: int = 0) -> Tensor:
    model = Toy()
    model.load_state_dict(weights(seed))
    with torch.no_grad():
        return model(X)  # type: ignore[no-any-return]


def test_streamed_blocks_are_spread() -> None:
    assert spread(40, 0) == []
    assert spread(4, 4) == [0, 1, 2, 3]
    assert spread(40, 3) == [0, 13, 26]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("resident", range(BLOCKS + 1))
def test_any_number_of_resident_blocks_gives_the_same_bits(resident: int, keep: bool) -> None:
    made = placed(resident, keep=keep)
    assert all(torch.equal(made.model(X), expected()) for _ in range(3))
    if keep:
        made.leave_device()
        assert torch.equal(made.model(X), expected())  # on a CPU it computes in RAM as well
        made.to_device()
        assert torch.equal(made.model(X), expected())


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("resident", [0, 2, BLOCKS])
def test_weights_that_change_are_used_at_once(resident: int, keep: bool) -> None:
    made = placed(resident, keep=keep)
    made.model(X)
    for name, weight in weights(1).items():
        made.write(name, weight)
    assert torch.equal(made.model(X), expected(1))
    if keep:
        made.leave_device()
        made.to_device()
        assert torch.equal(made.model(X), expected(1))


def test_a_pass_that_fails_half_way_does_no_harm() -> None:
    made = placed(0)

    def fail(*_: object) -> None:
        raise RuntimeError("failed")

    hook = made.model.blocks[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="failed"):
        made.model(X)
    hook.remove()
    assert torch.equal(made.model(X), expected())


def test_only_what_must_be_is_in_memory_twice() -> None:
    """Without `keep`, RAM holds the blocks that are streamed, and the device two of them and the rest."""
    made = placed(2)
    assert [group.host is not None for group in made._groups] == [True, True, False, True, False, False]
    assert [group.device is not None for group in made._groups] == [False, False, True, False, True, True]
    block = made._groups[0].size
    assert made.nbytes() == BLOCKS * block + made._groups[-1].size
    assert made.moving_bytes() == made.nbytes() - 3 * block
    buffers = {each.untyped_storage().data_ptr() for each in made.model.blocks[0].parameters()}
    assert buffers == {each.untyped_storage().data_ptr() for each in made.model.blocks[3].parameters()}


# --- on a GPU: what waits for what


class FakeCuda:
    """Streams and events that write down what they would do."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.stream = "main"

    def make_stream(self, _: object = None) -> Any:
        return SimpleNamespace(
            wait_stream=lambda _: None,
            wait_event=lambda event: self.log.append(f"copy waits for {event.last}"),
            synchronize=lambda: self.log.append("host waits"),
        )

    def make_event(self) -> Any:
        event = SimpleNamespace(last="nothing")
        event.record = lambda _: setattr(event, "last", f"{self.stream} after [{self.log[-1]}]")
        return event

    @contextmanager
    def switch(self, _: object) -> Iterator[None]:
        self.stream = "copy"
        yield
        self.stream = "main"

    def current(self, _: object = None) -> Any:
        return SimpleNamespace(wait_event=lambda event: self.log.append(f"main waits for {event.last}"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", fake.make_stream)
    monkeypatch.setattr(torch.cuda, "Event", fake.make_event)
    monkeypatch.setattr(torch.cuda, "stream", fake.switch)
    monkeypatch.setattr(torch.cuda, "current_stream", fake.current)
    return fake


class Memory:
    """A piece of memory that notes what is copied into it."""

    def __init__(self, fake: FakeCuda, name: str = "") -> None:
        self.fake, self.name = fake, name

    def numel(self) -> int:
        return 1

    def __getitem__(self, _: object) -> Memory:
        return self

    def record_stream(self, _: object) -> None:
        self.fake.log.append("kept for the copies")

    def copy_(self, source: Memory, *, non_blocking: bool) -> None:
        assert non_blocking
        self.fake.log.append(f"copy {source.name}")


def test_copies_wait_for_blocks_and_blocks_for_copies(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Memory(cuda))
    sources: Any = [Memory(cuda, name) for name in "abc"]
    streamer = BlockStreamer(sources, torch.device("cuda"))
    assert cuda.log == ["kept for the copies"] * 2
    cuda.log.clear()
    for _ in range(2):
        for place, source in enumerate(sources):
            streamer.before(place)
            cuda.log.append(f"run {source.name}")
            streamer.after(place)
    assert cuda.log[:12] == [
        "copy waits for nothing",
        "copy a",
        "main waits for copy after [copy a]",
        "copy waits for nothing",
        "copy b",  # while a runs
        "run a",
        "main waits for copy after [copy b]",
        "copy waits for main after [run a]",
        "copy c",  # into a's place, while b runs
        "run b",
        "main waits for copy after [copy c]",
        "run c",  # in the buffer that a needs: a can only be copied after it
    ]
    assert cuda.log[12:14] == ["copy waits for main after [run c]", "copy a"]
    assert "host waits" not in cuda.log
    streamer.finish()
    assert cuda.log[-1] == "host waits"


def test_pinned_memory_is_exact_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: dict[int, int] = {}
    runtime = SimpleNamespace(
        cudaHostRegister=lambda address, size, _: pinned.update({address: size}) or 0,
        cudaHostUnregister=pinned.pop,
    )
    monkeypatch.setattr(streaming, "_cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    memory = host_memory(1000, pinned=True)
    view = memory[:10].view(torch.float16)
    del memory
    assert list(pinned.values()) == [1000]
    del view
    assert not pinned
    runtime.cudaHostRegister = lambda *_: 2
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="out of memory: 1000 bytes of RAM cannot be pinned"):
        host_memory(1000, pinned=True)


# --- what is freed


@pytest.mark.parametrize("mode", ["offload", "stream"])
def test_an_expert_is_freed_before_the_other_one_is_read(
    mode: MemoryMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = Experts(support.find_models(support.MODELS), F32, "torch-flash", MemoryPlan(mode, keep=False))
    freed = weakref.ref(experts.use("high").blocks[0].attn1.to_q.weight)
    load, seen = experts._load, list[Tensor | None]()

    def watch(expert: Expert) -> None:
        seen.append(freed())
        load(expert)

    monkeypatch.setattr(experts, "_load", watch)
    low = weakref.ref(experts.use("low").blocks[0].attn1.to_q.weight)
    assert seen == [None]
    experts.free()
    assert low() is None


def test_the_text_encoder_may_be_streamed() -> None:
    files = support.find_models(support.MODELS).text_encoder
    tokens = torch.arange(7)[None]
    outputs = [
        load_text_encoder(files, F32, resident)(input_ids=tokens).last_hidden_state
        for resident in (None, 1, 0)
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
