"""Models whose weights wait in RAM: copied to the device as a whole, or block by block while they compute.

The weights of a block lie side by side in one piece of memory, so that it moves in one copy. A block that is
streamed has its place in one of two buffers on the device for good; what changes is the buffer's content. So
the same kernels run on the same values wherever the weights wait.
"""

from __future__ import annotations

import math
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch
    from torch import Tensor, nn

ALIGNMENT = 512
"""Bytes; torch's own for memory on a GPU, so that every kernel finds what it expects."""


@dataclass(frozen=True)
class _Weight:
    """Where a weight is in its model, and in the memory of its group."""

    module: nn.Module
    name: str
    start: int
    shape: torch.Size
    dtype: torch.dtype

    def view(self, memory: Tensor) -> Tensor:
        """The weight in the memory of its group."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return memory[self.start : self.start + size].view(self.dtype).view(self.shape)


@dataclass
class _Group:
    """The weights that move together: those of one block, or all outside of the blocks."""

    streamed: bool
    weights: dict[str, _Weight] = field(default_factory=dict)
    """By their names in the model."""
    size: int = 0
    """Bytes."""
    host: Tensor | None = None
    """The copy in RAM, where there is one."""
    device: Tensor | None = None

    def add(self, name: str, module: nn.Module, short_name: str, parameter: Tensor) -> None:
        """Give one more weight its place."""
        self.weights[name] = _Weight(module, short_name, self.size, parameter.shape, parameter.dtype)
        self.size += -(-parameter.nbytes // ALIGNMENT) * ALIGNMENT

    def bind(self, memory: Tensor) -> None:
        """Make the model's weights those in a piece of memory."""
        from torch.nn import Parameter

        for weight in self.weights.values():
            parameter = Parameter(weight.view(memory), requires_grad=False)
            weight.module.register_parameter(weight.name, parameter)


class PlacedModel:
    """A model with its weights on the device, in RAM, or partly here and there.

    `model` is on torch's "meta" device, in the types that it computes with. `resident` of its `blocks` stay
    on the device; the others are streamed from RAM. With `keep` RAM has a copy of everything, so that the
    model can leave the device and come back. Weights are given one by one with `write`, then `to_device`.
    """

    def __init__(
        self, model: Any, blocks: Iterable[nn.Module], device: torch.device, resident: int, *, keep: bool
    ) -> None:

        self.model = model
        self._device = device
        self._blocks = list(blocks)
        self._hooks: list[Any] = []
        self._streamer: BlockStreamer | None = None
        streamed = set(spread(len(self._blocks), len(self._blocks) - resident))
        self._groups = [_Group(index in streamed) for index in range(len(self._blocks))]
        outside = _Group(streamed=False)
        self._group_of: dict[str, _Group] = {}
        block_of = {module: index for index, block in enumerate(self._blocks) for module in block.modules()}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for module in model.modules():
            group = self._groups[block_of[module]] if module in block_of else outside
            for short_name, parameter in module.named_parameters(recurse=False):
                name = names.get(id(parameter))
                if name is not None and name not in self._group_of:
                    group.add(name, module, short_name, parameter)
                    self._group_of[name] = group
        self._groups.append(outside)
        self._keep = keep
        self.on_device = False

    def write(self, name: str, weight: Tensor) -> None:
        """Set a weight, in RAM and on the device, wherever it is. Computed on the device, copied once."""
        group = self._group_of[name]
        if group.host is None and group.device is None:
            self._allocate(group)
        for memory in (group.host, group.device):
            if memory is not None:
                group.weights[name].view(memory).copy_(weight)
        if self._streamer is not None:
            self._streamer.forget()

    def _allocate(self, group: _Group) -> None:
        """Memory for a group, when its first weight is there: to pin all of it at once would take seconds."""
        import torch

        if self._keep or group.streamed:
            group.host = memory = host_memory(group.size, pinned=self._device.type == "cuda")
        else:
            group.device = memory = torch.empty(group.size, dtype=torch.uint8, device=self._device)
        group.bind(memory)

    def to_device(self, on_bytes: Callable[[int, int], None] = lambda _done, _all: None) -> None:
        """Bring what is not streamed to the device, and prepare the streaming of the rest.

        `on_bytes` gets the bytes that have arrived, and all.
        """
        import torch

        if self.on_device:
            return
        arrived, total = 0, self.moving_bytes()
        for group in self._groups:
            if group.device is None and not group.streamed:
                assert group.host is not None
                group.device = torch.empty(group.size, dtype=torch.uint8, device=self._device)
                group.device.copy_(group.host, non_blocking=True)
                group.bind(group.device)
                if self._device.type == "cuda":
                    torch.cuda.current_stream().synchronize()  # not of what is decoded meanwhile
                arrived += group.size
                on_bytes(arrived, total)
        streamed = [index for index, group in enumerate(self._groups) if group.streamed]
        if streamed:
            sources = [group.host for group in self._groups if group.streamed and group.host is not None]
            self._streamer = streamer = BlockStreamer(sources, self._device)
            for place, index in enumerate(streamed):
                self._groups[index].bind(streamer.buffer(place))
                block = self._blocks[index]
                self._hooks += [
                    block.register_forward_pre_hook(partial(_before, streamer, place)),
                    block.register_forward_hook(partial(_after, streamer, place)),
                ]
        self.on_device = True

    def leave_device(self) -> None:
        """Free the memory on the device; all weights are in RAM. Needs `keep`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if self._streamer is not None:
            self._streamer.finish()
            self._streamer = None
        for group in self._groups:
            assert group.host is not None, "only a model that is kept in RAM can leave the device"
            group.bind(group.host)
            group.device = None
        self.on_device = False

    def nbytes(self) -> int:
        """Of all weights."""
        return sum(group.size for group in self._groups)

    def moving_bytes(self) -> int:
        """Of all weights that are not streamed: what `to_device` copies."""
        return sum(group.size for group in self._groups if not group.streamed)


def spread(count: int, some: int) -> list[int]:
    """`some` of `count` places at even distances, so that copies find time between them."""
    return [place * count // some for place in range(some)]


class BlockStreamer:
    """Copies blocks from RAM into two buffers on the device in turn, each while blocks before it compute.

    On a GPU the copies run in a stream of their own. Streams wait for each other through events; the host
    never waits. On a CPU the same calls copy at once.
    """

    def __init__(self, sources: Sequence[Tensor], device: torch.device) -> None:
        import torch

        self._sources = sources
        size = max(source.numel() for source in sources)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._content: list[int | None] = [None, None]
        """The place of the block that each buffer holds, or will hold when the copy under way is done."""
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types
            self._stream.wait_stream(torch.cuda.current_stream(device))  # the buffers' memory was in use
            for buffer in self._buffers:
                buffer.record_stream(self._stream)  # nor is it used again while a copy is under way
            self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]  # as above
            self._used = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]  # as above

    def buffer(self, place: int) -> Tensor:
        """The memory on the device of the block in a place."""
        return self._buffers[place % 2][: self._sources[place].numel()]

    def before(self, place: int) -> None:
        """Have a block in its buffer before it computes, and begin to copy the one after it."""
        import torch

        self._fetch(place)
        if self._stream is not None:
            torch.cuda.current_stream().wait_event(self._copied[place % 2])
        following = (place + 1) % len(self._sources)
        if following % 2 != place % 2:
            self._fetch(following)

    def after(self, place: int) -> None:
        """A block has computed: its buffer is free."""
        import torch

        if self._stream is not None:
            self._used[place % 2].record(torch.cuda.current_stream())
        self._fetch((place + 1) % len(self._sources))

    def forget(self) -> None:
        """The blocks in RAM have changed: copy them again."""
        self._content = [None, None]

    def finish(self) -> None:
        """Wait for copies under way."""
        if self._stream is not None:
            self._stream.synchronize()

    def _fetch(self, place: int) -> None:
        import torch

        turn = place % 2
        if self._content[turn] == place:
            return
        source, buffer = self._sources[place], self.buffer(place)
        if self._stream is None:
            buffer.copy_(source)
        else:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._used[turn])
                buffer.copy_(source, non_blocking=True)
                self._copied[turn].record(self._stream)
        self._content[turn] = place


def _before(streamer: BlockStreamer, place: int, *_: object) -> None:
    streamer.before(place)


def _after(streamer: BlockStreamer, place: int, *_: object) -> None:
    streamer.after(place)


def host_memory(size: int, *, pinned: bool) -> Tensor:
    """Bytes of RAM; pinned, so that a GPU copies from it without the CPU.

    torch's own pinned memory is rounded up to a power of two, and kept when it is freed; this is neither.
    Raises RuntimeError when RAM that can be pinned runs out.
    """
    import torch

    memory = torch.empty(size, dtype=torch.uint8)
    if pinned and size:
        address = memory.data_ptr()
        if int(_cudart().cudaHostRegister(address, size, 0)):
            with suppress(RuntimeError):
                torch.zeros(1, device="cuda")  # CUDA reports the failure once more, with the next kernel
            raise RuntimeError(f"CUDA error: out of memory: {size} bytes of RAM cannot be pinned")
        weakref.finalize(memory.untyped_storage(), _unpin, address)
    return memory


def _unpin(address: int) -> None:
    import torch

    torch.cuda.synchronize()  # a copy from it may be under way
    _cudart().cudaHostUnregister(address)


def _cudart() -> Any:
    """CUDA's runtime."""
    import torch

    return torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch has no types
