"""The right LoRA in the right place: official files by hash, others by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from svi_story.engines.svi.weights import lora
from svi_story.engines.svi.weights.catalogue import LoraPair
from svi_story.errors import InputError

if TYPE_CHECKING:
    from svi_story.engines import Digest
    from svi_story.enginespec.sampling import Variant

PRO_HIGH, PRO_LOW = (f"{start}{'0' * 52}{end}" for start, end in list(lora.OFFICIAL)[:2])
PAIR = LoraPair(Path("a.safetensors"), Path("b.safetensors"))


def digests(high: str, low: str) -> Digest:
    """Hashes of the pair's files."""
    return {PAIR.high: high, PAIR.low: low}.__getitem__


def test_the_official_pair_needs_no_note() -> None:
    assert lora.check_svi_pair("2.0-pro", PAIR, digests(PRO_HIGH, PRO_LOW)) == []


def test_an_unknown_pair_is_used_and_noted() -> None:
    notes = lora.check_svi_pair("2.0-pro", PAIR, digests("1" * 64, "2" * 64))
    assert len(notes) == 2
    assert "not known to be the official SVI 2.0-pro LoRA of the high-noise expert" in notes[0]


def test_an_unknown_pair_with_a_title_is_called_by_it(tmp_path: Path) -> None:
    pair = LoraPair(tmp_path / "high.safetensors", tmp_path / "low.safetensors")
    numbers = {"a": np.zeros(1)}

    def notes() -> list[str]:
        return lora.check_svi_pair("2.0-pro", pair, lambda file: file.name[0] * 64)

    for file in (pair.high, pair.low):
        save_file(numbers, file, {"modelspec.title": "A small\n model"})
    assert notes() == [f"{tmp_path}: not SVI's official LoRAs, but those of 'A small model'"]
    for title in ("Another", ""):
        save_file(numbers, pair.low, {"modelspec.title": title})
        assert ["used as it is" in note for note in notes()] == [True, True]


def test_swapped_experts_are_known_by_hash() -> None:
    with pytest.raises(InputError, match="swap them back") as caught:
        lora.check_svi_pair("2.0-pro", PAIR, digests(PRO_LOW, PRO_HIGH))
    assert len(caught.value.problems) == 2


def test_the_wrong_variant_is_known_by_hash() -> None:
    with pytest.raises(
        InputError, match=r"a\.safetensors: is the SVI 2\.0-pro LoRA of the high-noise expert"
    ):
        lora.check_svi_pair("2.0", PAIR, digests(PRO_HIGH, "2" * 64))


def test_one_file_for_both_experts_is_noted() -> None:
    notes = lora.check_svi_pair("2.0", PAIR, digests("1" * 64, "1" * 64))
    assert "the same file as b.safetensors" in notes[2]


def test_one_content_under_two_variants_names_is_noted(tmp_path: Path) -> None:
    names = [f"SVI_x_{e}_noise_lora_v2.0{s}.safetensors" for s in ("", "_pro") for e in ("high", "low")]
    for name in names:
        (tmp_path / name).touch()
    pair = LoraPair(tmp_path / names[0], tmp_path / names[1])
    contents = dict(zip(names, "1231", strict=True))
    notes = lora.check_svi_pair("2.0", pair, lambda file: contents[file.name] * 64)
    assert "the same file as SVI_x_low_noise_lora_v2.0_pro" in notes[2]


@pytest.mark.parametrize(
    ("variant", "high", "low"),
    [("2.0", "low_noise_lora_v2.0", "high_noise_lora_v2.0"), ("2.0", "high_noise_lora_v2.0_pro", "x")],
)
def test_wrong_places_are_known_by_name(variant: Variant, high: str, low: str) -> None:
    pair = LoraPair(*(Path(f"SVI_Wan2.2-I2V-A14B_{name}.safetensors") for name in (high, low)))
    with pytest.raises(InputError, match=r"not the SVI 2\.0 LoRA of the high-noise expert"):
        lora.check_svi_pair(variant, pair, str)


def test_svis_own_lora_is_refused_among_the_extra_ones() -> None:
    named = Path("SVI_Wan2.2-I2V-A14B_high_noise_lora_v2.0_pro.safetensors")
    for file, digest in ((named, "1" * 64), (Path("renamed.safetensors"), PRO_LOW)):
        with pytest.raises(InputError, match="take it out of loras"):
            lora.check_extra(file, ("high",), {file: digest}.__getitem__)


def test_an_extra_lora_named_for_the_other_expert_is_noted() -> None:
    file, other = Path("style_low_noise.safetensors"), Path("below-noise-free.safetensors")
    for each in (file, other):
        save_file({"blocks.0.ffn.0.lora_up.weight": np.zeros((1, 1))}, each)
    assert lora.check_extra(file, ("low",), str) == []
    assert "named for the low-noise expert" in lora.check_extra(file, ("high", "low"), str)[0]
    assert lora.check_extra(other, ("high",), str) == []


def test_a_swapped_distillation_pair_is_known_by_name() -> None:
    good = LoraPair(Path("high_noise_model.safetensors"), Path("low_noise_model.safetensors"))
    lora.check_distill(good)
    with pytest.raises(InputError, match="swap the two") as caught:
        lora.check_distill(LoraPair(good.low, good.high))
    assert len(caught.value.problems) == 2
