"""Reading safetensors strictly, one tensor at a time. Never pickle."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem, collect_problems, shorten_problems
from svi_story.files import check_regular, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

MAX_HEADER = 8 * 2**20
"""Bytes of a header, at most. A model of a thousand tensors needs a fiftieth; each takes a kilobyte here."""
MAX_FILE = 64 * 2**20
"""Bytes of what is read whole: configs, indexes, tokenizers (17 MB), records."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it: F32, BF16, I64, ..."""
    written: int
    """When the file was last written (ns): a changed file's tensors are other tensors."""

    def read(self) -> Tensor:
        """The tensor on the CPU as it is stored: a view of the mapped file, to be copied from at once.

        The file is opened anew for every tensor: what was mapped is given back each time, so that loading a
        model needs the model's memory and one tensor's, not the file's besides.
        """
        from safetensors import SafetensorError, safe_open

        try:
            check_regular(self.file)
            with safe_open(self.file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(self.key)
                return tensor
        except (OSError, SafetensorError) as error:
            raise InputError(_unreadable(self.file, error)) from error


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor that a file holds, by key, without reading any. Raises InputError for a bad file."""
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(file)
        written = file.stat().st_mtime_ns
        with open_regular(file) as opened:
            length = int.from_bytes(opened.read(8), "little")
        if MAX_HEADER < length <= file.stat().st_size:
            what = f"its header has {length} bytes, more than any model's ({MAX_HEADER}); download it again"
            raise InputError(Problem(what, file=str(file)))
        with safe_open(file, framework="np") as tensors:  # so that headers are read without torch
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118 - it is no mapping
            return {
                key: StoredTensor(file, key, tuple(piece.get_shape()), str(piece.get_dtype()), written)
                for key, piece in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise InputError(_unreadable(file, error)) from error


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of a model whose shards these are. Raises InputError for bad files, keys, types."""
    files = list(files)
    entries: dict[str, StoredTensor] = {}
    problems: list[Problem] = []
    for header in collect_problems([partial(read_header, file) for file in files]):
        problems += shorten_problems([p for entry in header.values() for p in dtype_problems(entry)])
        twice = [(entry, entries[key]) for key, entry in header.items() if key in entries]
        what = "holds {}, as does {}"
        problems += shorten_problems(
            [Problem(what.format(one.key, other.file.name), file=str(one.file)) for one, other in twice]
        )
        entries |= header
    if not entries:
        problems += [Problem("holds no tensors; download it again", file=str(file)) for file in files]
    if problems:
        raise InputError(*problems)
    return entries


def dtype_problems(entry: StoredTensor) -> list[Problem]:
    """What is wrong with a weight's type: quantised weights are not read."""
    if entry.dtype in FLOATS:
        return []
    what = f"{entry.key} is stored as {entry.dtype}; only F32, F16, BF16 and F64 are read"
    return [Problem(what, file=str(entry.file))]


def is_finite(tensor: Tensor) -> Tensor:
    """Whether every value is finite, as a bool tensor [] on the tensor's device (so nothing waits for it)."""
    import torch

    if tensor.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    low, high = torch.aminmax(tensor)  # carries NaN along, and needs no memory of the tensor's size
    return torch.isfinite(low) & torch.isfinite(high)


def _unreadable(file: Path, error: Exception) -> Problem:
    if isinstance(error, OSError):
        return Problem(f"cannot be read: {error.strerror or error}", file=str(file))
    what = f"not a safetensors file, or cut short ({error}); download it again"
    return Problem(what, file=str(file))
