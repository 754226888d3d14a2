"""Tensors on disk: exact, the same bytes for the same values, and no damage goes unnoticed."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cache_scenario import faulty, full
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from svi_story.cache.tensors import DTYPES, encode, load_tensors, save_tensors
from svi_story.errors import RenderError
from svi_story.files import CorruptError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda name: hnp.arrays(np.dtype(name), SHAPES))
TENSORS = st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), ARRAYS, max_size=4)

quick = settings(max_examples=60, deadline=None)
"""The disk sets the pace."""


def same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Bit for bit, NaNs and negative zeros too."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensors")


@quick
@given(tensors=TENSORS, note=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_round_trip(folder: Path, tensors: dict[str, NDArray[Any]], note: dict[str, str]) -> None:
    path = folder / "round.safetensors"
    save_tensors(path, tensors, note)
    loaded = load_tensors(path, note)
    assert loaded is not None
    assert loaded.keys() == tensors.keys()
    assert all(same(loaded[name], array) for name, array in tensors.items())
    assert all(array.flags.writeable for array in loaded.values())
    assert encode(loaded, note) == path.read_bytes()


@quick
@given(array=ARRAYS, data=st.data())
def test_any_memory_layout(array: NDArray[Any], data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(array.ndim)))
    other = np.asfortranarray(array.transpose(axes))[::-1] if array.ndim else array
    swapped = other.astype(other.dtype.newbyteorder(">"))
    plain = np.array(other, order="C")
    assert encode({"x": other}) == encode({"x": swapped}) == encode({"x": plain})


@quick
@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(folder: Path, position: int, bit: int) -> None:
    tensors = {"b": np.arange(30, dtype=np.float32).reshape(5, 6), "a": np.array([True, False])}
    data = bytearray(encode(tensors, {"key": "k"}))
    data[position % len(data)] ^= 1 << bit
    path = folder / "flipped.safetensors"
    path.write_bytes(data)
    try:
        loaded = load_tensors(path, {"key": "k"})
    except CorruptError:
        return
    assert loaded is not None  # white space in the header says nothing
    assert encode(loaded, {"key": "k"}) == encode(tensors, {"key": "k"})


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    data = encode({"x": np.arange(9)})
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptError):
            load_tensors(path)


def test_a_header_that_is_far_too_long_is_not_parsed(tmp_path: Path) -> None:
    """Forty bytes describe a tensor, which takes ten times as many in memory."""
    path = tmp_path / "t.safetensors"
    header = {f"{k}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for k in range(20_000)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CorruptError) as caught:
        load_tensors(path)
    assert "too long" in str(caught.value.__cause__)


def test_absent_is_none_and_what_is_no_file_is_corrupt(tmp_path: Path) -> None:
    assert load_tensors(tmp_path / "none") is None
    assert load_tensors(tmp_path / "no" / "folder") is None
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(CorruptError):
            load_tensors(tmp_path / name)


def test_another_note_is_another_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"x": np.ones(2)}, {"key": "a"})
    with pytest.raises(CorruptError):
        load_tensors(tmp_path / "x", {"key": "b"})


def test_a_foreign_safetensors_file_is_corrupt(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for metadata in (None, {"svi-story": "[]"}, {"svi-story": "{}"}, {"svi-story": "1"}, {"other": "x"}):
        save_file({"x": np.ones(2)}, tmp_path / "x", metadata)
        with pytest.raises(CorruptError):
            load_tensors(tmp_path / "x")


@pytest.mark.parametrize("dtype", ["complex128", "longdouble", "<U3", "object", "datetime64[s]"])
def test_what_cannot_be_kept_is_refused(dtype: str) -> None:
    with pytest.raises(TypeError, match="these can be stored: bool, int8"):
        encode({"x": np.zeros(2, dtype)})


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_tensors(path, {"x": np.ones(2)})
    for n in range(1, 5):  # open, write, fsync, rename
        with faulty(n, full), pytest.raises(RenderError) as raised:
            save_tensors(path, {"x": np.zeros(2)})
        assert str(path) in str(raised.value)
        assert "free some space" in str(raised.value)
        assert raised.value.__cause__.errno == errno.ENOSPC  # type: ignore[union-attr]  # an OSError
        loaded = load_tensors(path)
        assert loaded is not None
        assert loaded["x"].tolist() == [1, 1]
        assert [item.name for item in tmp_path.iterdir()] == ["x"]
