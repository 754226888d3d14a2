"""Reading weight files ahead: what comes next, where there is room, and never an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import svi_support as support

from svi_story.engines.svi.weights import read_ahead
from svi_story.engines.svi.weights.read_ahead import CHUNK, SPARE, ReadAhead


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        path.write_bytes(b"." * (CHUNK + 1))
    return paths


def read_of(process_file: Path = Path("/proc/self/io")) -> int:
    """Bytes that this process has read so far."""
    return int(process_file.read_text("ascii").split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no /proc")
def test_files_are_read_to_their_end(files: list[Path]) -> None:
    before = read_of()
    reading = ReadAhead(free=lambda: SPARE + 2 * (CHUNK + 1))
    reading.start(files)
    assert reading._thread is not None
    reading._thread.join()
    assert read_of() - before >= 2 * (CHUNK + 1)


def test_nothing_is_read_where_ram_is_too_small(files: list[Path]) -> None:
    reading = ReadAhead(free=lambda: SPARE + 2 * (CHUNK + 1) - 1)
    reading.start(files)
    assert reading._thread is None
    reading.stop()


def test_a_missing_file_is_no_error_here(files: list[Path]) -> None:
    reading = ReadAhead(free=lambda: 2 * SPARE)
    reading.start([*files, files[0].with_name("missing")])
    assert reading._thread is None
    os.unlink(files[0])  # noqa: PTH108 - as fast as can be
    reading.start(files[1:])
    reading.stop()


def test_the_expert_that_comes_next_is_read_while_the_other_one_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[set[Path]] = []
    monkeypatch.setattr(read_ahead.ReadAhead, "start", lambda _, files: begun.append(set(files)))
    segment = support.segment(0, "2.0-pro", support.sampler("2.0-pro", steps=2), frames=5)
    with support.engine() as svi:
        svi.prepare([segment])
        high, low = ({*svi._running().paths.expert(name).weights} for name in ("high", "low"))
        assert begun == [high]  # while the texts are encoded
        support.render(svi, [segment])
    assert begun == [high, low]  # while the high-noise expert works; then both are in memory
