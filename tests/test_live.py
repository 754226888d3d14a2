"""The live preview: what it shows, where it lies, and that no frame depends on it."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import svi_support as support
import torch
from PIL import Image
from test_svi_cli import FLAGS, entries, reference_board

from svi_story.engines.svi import preview, sampler
from svi_story.engines.svi.engine import Svi
from svi_story.events import ClipDone, Event, FilmDone
from svi_story.render import live
from svi_story.render.live import LivePreview, live_preview

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.plan.model import Segment

    Run = Callable[..., Ended]
    Write = Callable[..., Path]


def ignore(_event: Event) -> None:
    pass


def linear_film(latents: np.ndarray, factors: np.ndarray) -> list[np.ndarray]:
    """What a linear decoder would make of latents: every latent's colour, over its block of pixels."""
    colours = np.einsum("cthw,cr->thwr", latents, factors[:-1]) + factors[-1]
    shown = np.clip(colours.round(), 0, 255).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return [shown[(frame + 3) // 4] for frame in range(4 * latents.shape[1] - 3)]


def test_it_is_exact_for_a_linear_decoder() -> None:
    random = np.random.default_rng(0)
    latents = random.normal(size=(16, 9, 6, 8)).astype(np.float32)
    factors = np.vstack([random.normal(size=(16, 3)) * 8, [[120.0, 110.0, 130.0]]])
    film = linear_film(latents, factors)
    found = preview.project(torch.tensor(latents)[None], preview.fit(latents, film))
    shown = np.stack([film[preview.shown_by(latent)][::8, ::8] for latent in range(9)])
    assert np.abs(np.stack(found).astype(int) - shown).max() <= 1


def test_on_the_tiny_vae_nothing_linear_is_nearer_to_the_frames() -> None:
    with support.engine() as svi:
        (made,) = support.render(svi, [support.segment()])
        factors = svi._preview_factors
    assert factors is not None
    latents, frames = made.latents[0], list(made.frames)
    known = np.concatenate([latents.reshape(16, -1).T, np.ones((latents[0].size, 1))], axis=1)
    rows, columns = latents.shape[2:]
    shown = [preview.shown_by(latent) for latent in range(latents.shape[1])]
    wanted = np.stack([preview.scaled_down(frames[each], rows, columns) for each in shown]).reshape(-1, 3)
    best = np.square(known @ np.linalg.lstsq(known, wanted, rcond=None)[0] - wanted).mean()
    assert np.square(known @ factors - wanted).mean() <= best * 1.0001 + 1e-3


@pytest.mark.parametrize("variant", support.VARIANTS)
def test_it_shows_what_is_predicted_without_another_pass(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step, the prediction is the result; before, it nears it."""
    passes: list[int] = []
    velocity = sampler._velocity

    def counted(*some: Any) -> torch.Tensor:
        passes.append(1)
        return velocity(*some)

    monkeypatch.setattr(sampler, "_velocity", counted)
    segment = support.segment(variant=variant)
    seen: list[Any] = []
    with support.engine() as svi:

        def on_step(_done: int, _steps: int) -> None:
            assert svi._predicted is not None
            seen.append(svi._predicted().numpy())
            assert len(svi.preview()) == latents_of(segment)
            assert svi.preview()[0].shape == (segment.size.height // 8, segment.size.width // 8, 3)

        result = np.asarray(svi.sample(segment, None, support.Memory(), on_step)["latents"])
        with_preview = len(passes)
        again = np.asarray(svi.sample(segment, None, support.Memory(), support.ignore_step)["latents"])
        assert svi.preview() == ()
    assert np.array_equal(result, again)
    assert len(passes) == 2 * with_preview
    distances = [np.abs(each - result).mean() for each in seen]
    assert distances[-1] == 0
    assert distances[0] > distances[-2] > 0


def latents_of(segment: Segment) -> int:
    return (segment.frames - 1) // 4 + 1


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[int, int]]]:
    """Numbers of pictures and sizes of the previews that were written."""
    found: list[tuple[int, tuple[int, int]]] = []
    write = live._write

    def look(path: Path, animation: Any) -> None:
        write(path, animation)
        if animation:
            with Image.open(path) as picture:
                found.append((getattr(picture, "n_frames", 1), picture.size))

    monkeypatch.setattr(live, "_write", look)
    return found


def test_a_render_shows_its_steps_and_no_frame_depends_on_it(
    write_board: Write, svi_story: Run, kept: list[tuple[int, tuple[int, int]]]
) -> None:
    board = reference_board(write_board, "2.0-pro", clips=[{"prompt": support.SETTINGS["prompts"][0]}])
    ended = svi_story("render", board, *FLAGS, "--preview-every", 1, "--json")
    names = {json.loads(line)["event"] for line in ended.out.splitlines()}
    assert {"prompts_started", "model_loading", "phase_started", "time_left", "join_started"} <= names
    (with_preview,) = entries(svi_story, board)
    size = (support.SETTINGS["width"], support.SETTINGS["height"])
    frames = support.SETTINGS["frames_per_clip"]
    assert kept[-1] == ((frames - 1) // 4 + 1, size)
    assert not live_preview(Path("renders/board.mp4")).exists()
    count = len(kept)
    assert svi_story("render", board, *FLAGS, "--preview-every", 0, "--force", "all").code == 0
    (without,) = entries(svi_story, board)
    assert len(kept) == count
    assert with_preview.frames_sha256 == without.frames_sha256


def test_the_animatic_has_one_too(write_board: Write, svi_story: Run, kept: list[Any]) -> None:
    board = write_board(resolution="320x192", clips=[{"prompt": "A cat is running.", "duration": "2s"}])
    assert svi_story("render", board, "--engine", "animatic").code == 0
    assert kept[-1][1] == (240, 144)
    assert kept[-1][0] > 5


def test_a_file_of_the_user_is_kept_and_a_bad_disk_stops_nothing(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board()
    theirs = live_preview(board.parent / "renders/board.mp4")
    theirs.parent.mkdir()
    theirs.write_text("mine", "utf-8")
    assert svi_story("render", board, "--engine", "animatic").code == 0
    assert theirs.read_text("utf-8") == "mine"

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(live, "_write", fail)
    assert svi_story("render", write_board("b.yaml", seed=3), "--engine", "animatic").code == 0


def test_an_engine_that_cannot_predict_stops_nothing(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: Svi) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Svi, "preview", fail)
    monkeypatch.setattr(preview, "fit", fail)
    board = reference_board(write_board, "2.0", clips=[{"prompt": support.SETTINGS["prompts"][0]}])
    assert svi_story("render", board, *FLAGS, "--preview-every", 1).code == 0


def test_a_disk_that_does_not_answer_slows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    written: list[int] = []

    def wait(_path: Path, animation: Any) -> None:
        written.append(len(animation.parts[0]) if animation else 0)
        answer.wait(60)

    monkeypatch.setattr(live, "_write", wait)
    monkeypatch.setattr(live, "CLOSE_SECONDS", 0.05)
    segment = support.segment()
    shown = LivePreview({segment.board: tmp_path / "a.mp4"}, ignore)
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    for count in range(1, 100):
        shown.show(segment, [frame] * count)
    shown(FilmDone(segment.board, tmp_path / "a.mp4", 1, 1.0, made=True))
    shown.close()
    assert len(written) <= 2
    answer.set()


def test_clips_that_workers_render_at_the_same_time_do_not_mix(tmp_path: Path, kept: list[Any]) -> None:
    segment = support.segment()
    film = tmp_path / "a.mp4"
    shown = LivePreview({segment.board: film}, ignore)
    frames = [np.full((8, 8, 3), 50 * shade, dtype=np.uint8) for shade in range(4)]

    def comes(pictures: int) -> bool:
        until = time.monotonic() + 30
        while (not kept or kept[-1][0] != pictures) and time.monotonic() < until:
            time.sleep(0.01)
        return bool(kept) and kept[-1][0] == pictures

    shown.show(replace(segment, clip="one", index=0), frames[:2])
    assert comes(2)
    shown.show(replace(segment, clip="two", index=0), frames[:3])
    assert comes(3)
    shown.show(replace(segment, clip="one", index=1), frames[2:4])
    assert comes(4)
    shown(ClipDone(segment.board, "one"))
    shown.show(replace(segment, clip="one", index=1), frames[:1])
    assert comes(1)
    shown.close()
    assert not live_preview(film).exists()
