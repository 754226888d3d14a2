"""The benchmark of quality along a chain: each way to render is told from the reference as it should be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "toy")]

import numpy as np
import pytest
import quality
import svi_support as support
from quality_variants import VARIANTS, chains

if TYPE_CHECKING:
    from svi_story.cache.entry import Entry


class Drawn:
    """What the cache would hold of a clip as it is drawn."""

    def __init__(self, frames: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._frames = frames

    def frames(self) -> Drawn:
        return self

    def latents(self) -> dict[str, Any]:
        return {"latents": self._frames[::4] / np.float32(100)}

    def __enter__(self) -> Any:
        return self._frames

    def __exit__(self, *_error: object) -> None: ...


def setting(folder: Path) -> quality.Setting:
    return quality.Setting(support.MODELS, folder, clips=2, steps=2, quick=True)


def test_a_clip_as_drawn_obeys_and_another_creature_is_not_it() -> None:
    right: list[tuple[bool, bool, bool]] = []
    for chain in chains(10, 1, half=True):
        for number, frames in enumerate(chain.drawn):
            drawn = cast("Entry", Drawn(frames))
            clip = quality._judge_clip(chain, number, drawn, drawn)
            assert clip.obeyed, (chain.name, number)
            assert (clip.rms, clip.error) == (0, 0)
            assert (clip.right is None) == (chain.moments[number].story.state.x is None)
            right += [clip.right] if clip.right else []
            empty = cast("Entry", Drawn(np.repeat(chain.empty, 17, 0)))
            missing = quality._judge_clip(chain, number, empty, drawn)
            assert missing.right in (None, (False, False, False))
            assert missing.obeyed == (chain.moments[number].action == "empty")
    assert np.mean(right, axis=0).min() > 0.9


def test_what_small_pictures_explain() -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 3, 4, 3), np.uint8)
    frames = np.repeat(blocks.repeat(8, 1).repeat(8, 2), 4, 0)[3:]
    assert quality.explained(list(blocks), frames) == 1
    mean = np.broadcast_to(blocks.mean((0, 1, 2)), blocks.shape)
    assert quality.explained(list(mean), frames) == pytest.approx(0)


def test_variants_beside_the_reference(tmp_path: Path) -> None:
    names = ["GGUF Q4_0", "nothing carried over"]
    judged, failed = quality.measure(setting(tmp_path), names)
    assert not failed
    same, coarse, broken = judged
    assert [(clip.rms, clip.error) for clip in same.clips] == [(0, 0)] * 2
    assert all(0.001 < coarse.rms(number) < 0.2 for number in (0, 1))
    assert broken.rms(0) == 0
    assert broken.rms(1) > 0.05
    (row,) = (
        row for row in quality.report(setting(tmp_path), judged, [], {}).tables[0].rows if row[0] == same.name
    )
    assert row[1:6] == ("0", "0", None, "equal", "equal")


def test_every_variant_can_be_named_in_a_command() -> None:
    assert quality.command_line().parse_args(["--only", *VARIANTS]).only == list(VARIANTS)


@pytest.mark.slow  # every line of the table; each renders with the code that other tests cover
def test_every_variant_renders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality.main(["--quick", "--models", str(support.MODELS), "--work", str(tmp_path), "--processes", "1"])
    shown = capsys.readouterr().out
    assert "Not rendered" not in shown
    assert all(f"\n| {name} " in shown for name in VARIANTS)
