"""--compile: one graph for both experts and everything that they meet, recorded with what it rendered."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import svi_support as support
import torch
from test_svi_cli import FLAGS, entries, reference_board
from torch._dynamo.testing import CompileCounterWithBackend

from svi_story.engines.svi.compiled import CACHE
from svi_story.engines.svi.device import release
from svi_story.errors import RenderError
from svi_story.plan.model import Size
from svi_story.settings import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts what is compiled; the graphs are run as they are, which is quick."""
    torch._dynamo.reset()
    monkeypatch.setenv(CACHE, "/left-as-it-is")
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


def sample(svi: Any, segment: Any) -> Any:
    return svi.sample(segment, None, support.Memory(), support.ignore_step)["latents"]


def test_one_graph_serves_both_experts_all_modes_sizes_and_loras(graphs: CompileCounterWithBackend) -> None:
    first = support.segment(settings=support.sampler(steps=3))
    with support.engine() as plain:
        plain.prepare([first])
        wanted = sample(plain, first)
    assert graphs.frame_count == 0
    longer = replace(first, frames=first.frames + 4)
    size = Size(first.size.width + 32, first.size.height)
    wider = replace(first, size=size, anchor=replace(first.anchor, size=size, pixels="wider"))
    picture = support.anchor_picture()
    pictures = {"anchor": picture, "wider": np.pad(picture, ((0, 0), (0, 32), (0, 0)))}
    other_loras = support.segment(settings=support.sampler("2.0-pro", steps=3))
    for mode in ("resident", "stream"):
        with support.engine(pictures=pictures, compile=True, memory=mode) as svi:
            segments = [first, longer, wider, other_loras]
            svi.prepare(segments)
            made = [sample(svi, each) for each in segments]
            assert (made[0] == wanted).all()
            assert svi.environment()["compile"] == "torch.compile"
        assert graphs.frame_count == 1, mode
    assert os.environ[CACHE] == "/left-as-it-is"


def test_int8_weights_are_compiled_too(graphs: CompileCounterWithBackend) -> None:
    made = []
    for compiled in (False, True):
        with support.engine(compile=compiled, precision="int8") as svi:
            svi.prepare([support.segment()])
            made.append(sample(svi, support.segment()))
    assert (made[0] == made[1]).all()
    assert graphs.frame_count == 1


def test_a_compiled_model_can_be_freed(graphs: CompileCounterWithBackend) -> None:
    with support.engine(compile=True) as svi:
        svi.prepare([support.segment()])
        sample(svi, support.segment())
        experts = svi._running().experts
        weights = [weakref.ref(each) for each in experts.use("high").parameters()]
        experts.free()
        release()
        assert graphs.frame_count
        assert not [each for each in weights if each() is not None]


def test_a_film_says_where_it_mixes_compiled_and_other_clips(
    graphs: CompileCounterWithBackend, write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = reference_board(write_board, "2.0-pro")
    assert svi_story("render", board, *FLAGS, "--only", "1").code == 0
    monkeypatch.setenv("SVI_STORY_COMPILE", "true")
    ended = svi_story("render", board, *FLAGS)
    assert ended.code == 0, ended.err
    assert graphs.frame_count == 1
    assert "different environments" in ended.err
    compiled = ["compile" in entry.environment for entry in entries(svi_story, board)]
    assert compiled == [False, True, True]
    assert "compile: off (clip-01); torch.compile (clip-02, clip-03)" in ended.err.replace("\n", " ")
    assert svi_story("render", board, *FLAGS, "--no-compile", "--force", "clip-03").code == 0
    assert "compile" not in entries(svi_story, board)[2].environment


def test_without_a_compiler_nothing_starts(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder, exc

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    ended = svi_story("render", reference_board(write_board, "2.0-pro"), *FLAGS, "--compile")
    assert ended.code == 1
    assert "torch finds no C++ compiler" in ended.err
    assert "leave out --compile" in ended.err


def test_what_cannot_be_compiled_is_an_error_and_not_slow(
    graphs: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.models.transformers.transformer_wan import WanAttention

    plain = WanAttention.forward

    def printing(*args: Any, **options: Any) -> Any:
        print("a graph break")  # noqa: T201 - which is one
        return plain(*args, **options)

    monkeypatch.setattr(WanAttention, "forward", printing)
    with support.engine(compile=True) as svi:
        svi.prepare([support.segment()])
        with pytest.raises(RenderError, match="render without --compile"):
            sample(svi, support.segment())


@pytest.mark.slow  # a minute, most of it g++
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_compiled_kernels_are_near_eager_ones_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.delenv(CACHE, raising=False)
    made = []
    for compiled in (False, True):
        with support.engine(compile=compiled) as svi:
            svi.prepare([support.segment()])
            made.append(sample(svi, support.segment()))
    assert np.abs(made[1] - made[0]).max() < 1e-4 * made[0].std()
    assert list((user_cache() / "compiled").rglob("*.so"))
