"""Tensors in files, read one at a time and dequantised while they are read. Never pickle."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.files import check_regular, open_regular

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

MAX_HEADER = 8 * 2**20
"""Bytes of a header, at most. A model of a thousand tensors needs a fiftieth; each takes a kilobyte here."""
MAX_FILE = 64 * 2**20
"""Bytes of what is read whole: configs, indexes, tokenizers (17 MB), records."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""Of types with more than one byte."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    """As the file calls it: F32, BF16, F8_E4M3, I64, ...; Q4_K, ... in GGUF."""
    written: int
    """When the file was last written (ns): a changed file's tensors are other tensors."""

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * _ITEM_BYTES.get(self.dtype, 1)

    def read(self, device: torch.device | None = None) -> Tensor:
        """The tensor in floating point on a device (by default the CPU, where it may be a view of the file).

        The file is opened anew for every tensor: what was mapped is given back each time, so that loading a
        model needs the model's memory and one tensor's, not the file's besides.
        """
        from safetensors import SafetensorError, safe_open

        try:
            check_regular(self.file)
            with safe_open(self.file, framework="pt") as file:
                tensor: Tensor = file.get_tensor(self.key)
        except (OSError, SafetensorError) as error:
            raise InputError(_unreadable(self.file, error)) from error
        return tensor.to(device) if device else tensor


@dataclass(frozen=True)
class ScaledTensor(StoredTensor):
    """A tensor of small numbers (fp8, int8), each to be multiplied by the scale of its tensor or its row."""

    values: StoredTensor
    scale: StoredTensor

    @property
    def nbytes(self) -> int:
        """Its size in the file, with the scale's."""
        return self.values.nbytes + self.scale.nbytes

    def read(self, device: torch.device | None = None) -> Tensor:
        """float32: values * scale. Exact conversions and one rounding, so the same on every device."""
        import torch

        scale = self.scale.read(device).to(torch.float32)
        if not bool(((scale > 0) & scale.isfinite()).all()):
            what = f"{self.scale.key} holds a scale that is not a number above 0; download it again"
            raise InputError(Problem(what, file=str(self.file)))
        if scale.numel() > 1:
            scale = scale.reshape(-1, *(1 for _ in self.shape[1:]))
        return self.values.read(device).to(torch.float32) * scale.to(torch.float32)


LONGEST_TITLE = 100
"""Characters of a model's title that are shown."""


def title_of(file: Path) -> str:
    """What a file calls the model that it is of (https://github.com/Stability-AI/ModelSpec), or nothing.

    Nothing too for a file that cannot be read as safetensors: that is reported where it is loaded.
    """
    try:
        return " ".join(read_safetensors(file)[1].get("modelspec.title", "").split())[:LONGEST_TITLE]
    except InputError:
        return ""


def read_safetensors(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor of a file by key, as it is stored, and the header's metadata. Reads no tensor.

    Raises InputError for a bad file.
    """
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
            found = {
                key: StoredTensor(file, key, tuple(piece.get_shape()), str(piece.get_dtype()), written)
                for key, piece in slices.items()
            }
            return found, tensors.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(_unreadable(file, error)) from error


def read_numbers(tensor: StoredTensor) -> NDArray[np.float32]:
    """A 16- or 32-bit tensor without torch, which numpy needs help with: it has no bfloat16."""
    import numpy as np

    try:
        with open_regular(tensor.file) as file:
            length = int.from_bytes(file.read(8), "little")
            start, end = json.loads(file.read(length))[tensor.key]["data_offsets"]
            file.seek(8 + length + start)
            data = file.read(end - start)
    except OSError as error:
        raise InputError(_unreadable(tensor.file, error)) from error
    if tensor.dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)
    kinds = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    return np.frombuffer(data, kinds[tensor.dtype]).astype(np.float32).reshape(tensor.shape)


def _unreadable(file: Path, error: Exception) -> Problem:
    if isinstance(error, OSError):
        return Problem(f"cannot be read: {error.strerror or error}", file=str(file))
    what = f"not a safetensors file, or cut short ({error}); download it again"
    return Problem(what, file=str(file))


def is_finite(tensor: Tensor) -> Tensor:
    """Whether every value is finite, as a bool tensor [] on the tensor's device (so nothing waits for it)."""
    import torch

    if tensor.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    low, high = torch.aminmax(tensor)  # carries NaN along, and needs no memory of the tensor's size
    return torch.isfinite(low) & torch.isfinite(high)
