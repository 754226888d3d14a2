"""What the first version rendered stays valid: its keys, its cache and its films."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from svi_story.engines.animatic import AnimaticIdentity
from svi_story.engines.svi.identity import SviIdentity
from svi_story.engines.svi.weights.locate import ModelFolders
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import with_keys
from svi_story.plan.model import Anchor, Recording
from svi_story.plan.resolve import plan_film
from svi_story.render.record import read_record
from svi_story.render.record import versions as frame_versions
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.plan.keys import Identity
    from svi_story.plan.model import Fit, Size

    Run = Callable[..., Ended]

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests/data"
MODELS = DATA / "svi/models"
GOLDEN: dict[str, list[str]] = json.loads((DATA / "golden-keys.json").read_text("utf-8"))
"""The first 16 digits of every key that the first version computed, by board and engine."""

VARIATIONS: dict[str, dict[str, Any]] = {
    "pro": {
        "engine": {"variant": "2.0-pro"},
        "clips": [
            {"prompt": "One."},
            {"prompt": "Two.", "duration": "7s"},
            {"prompt": "Three.", "frames": 41},
        ],
    },
    "pro-two-latents": {
        "engine": {"variant": "2.0-pro", "motion_latents": 2, "steps": 30, "shift": 7.5, "boundary": 0.9},
        "clips": [{"prompt": "One."}, {"prompt": "Two."}],
    },
    "guidance": {
        "engine": {"guidance": {"high": 4.0, "low": 3.5}},
        "clips": [
            {"prompt": "One.", "guidance": 6},
            {"prompt": "Two.", "guidance": {"high": 1.0, "low": 1.0}},
        ],
    },
    "unguided": {"engine": {"guidance": 1.0}, "negative_prompt": "rain", "clips": [{"prompt": "One."}]},
    "chains": {
        "seed": 7,
        "style": "35mm film",
        "fps": 24,
        "clips": [
            {"prompt": "One."},
            {"prompt": "Two.", "transition": "cut"},
            {"prompt": "Three.", "transition": {"fade": "0.5s"}},
            {"prompt": "Four.", "transition": {"dip": "1s"}, "seed": 99},
            {"prompt": "Five."},
        ],
    },
    "portrait": {
        "resolution": "480x832",
        "fit": "pad",
        "fps": "24000/1001",
        "engine": {"max_frames": 41},
        "clips": [{"prompt": "One.", "duration": "20s"}],
    },
}
"""Boards that differ from the shipped ones in what keys depend on."""


class Constant(Fingerprints):
    """The same hashes on every machine, whatever version of Pillow reads the pictures."""

    def anchor(self, path: Path, size: Size, fit: Fit) -> Anchor:
        return Anchor(path, size, fit, pixels=f"pixels of {path.name} {size} {fit}")

    def recording(self, path: Path) -> Recording:
        return Recording(path, path.name, 48000)

    def file(self, path: Path) -> str:
        return hashlib.sha256(path.name.encode()).hexdigest()


@pytest.mark.parametrize("name", GOLDEN)
def test_keys_are_those_of_the_first_version(name: str, tmp_path: Path) -> None:
    """A change here means that every user's cache is rendered again."""
    board, engine = name.split(" ")
    path = ROOT / board
    if board in VARIATIONS:
        path = tmp_path / f"{board}.yaml"
        path.write_text(json.dumps({"version": 1, "reference": "r.png", **VARIATIONS[board]}), "utf-8")
        (tmp_path / "r.png").touch()
    fingerprints = Constant(tmp_path / "memo.json")
    identities: dict[str, Identity] = {
        "animatic": AnimaticIdentity(),
        "svi": SviIdentity(ModelFolders((MODELS,)), "bfloat16", fingerprints.file),
    }
    plan = with_keys(plan_film(load(path), fingerprints, engine), identities.__getitem__)
    assert [segment.key[:16] for segment in plan.segments] == GOLDEN[name]


@pytest.mark.parametrize("board", ["drawn", "sampled"])
def test_a_cache_of_the_first_version_serves(
    board: str, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is rendered again; the film itself is cut again only where the libraries are others."""
    shutil.copytree(DATA / "first-cache", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    words = [f"{board}.yaml", "--models", str(MODELS), "--dtype", "float32"]
    film = Path(f"renders/{board}.mp4")
    before, record = film.read_bytes(), json.loads(film.with_suffix(".json").read_text("utf-8"))
    states = json.loads(svi_story("plan", *words, "--json").out)["boards"][0]["clips"]
    assert {part["state"] for clip in states for part in clip["segments"]} == {"cached"}
    done = svi_story("render", *words, "--json")
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    kinds = {event["event"] for event in events}
    assert not kinds & {"segment_started", "segment_done", "step_done"}
    same = record["versions"] == frame_versions()
    assert [event["made"] for event in events if event["event"] == "film_done"] == [not same]
    assert not same or film.read_bytes() == before
    assert read_record(film) is not None
