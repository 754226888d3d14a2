"""Commands that messages suggest: they repeat the options of the command that suggests them."""

from __future__ import annotations

import ast
import errno
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from PIL import Image
from typer.main import get_command

import svi_story as package
from svi_story import api, portable
from svi_story.cli.app import app
from svi_story.commands import Given, repeating, suggest
from svi_story.enginespec import EngineOptions
from svi_story.errors import RenderError
from svi_story.render.distributed.worker import Worker, WorkerSetup

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Run = Callable[..., Ended]
    Write = Callable[..., Path]

HINTS = [
    (
        ("review", "board.yaml", "--engine", "animatic", "-o", "out", "--cache", "my cache", "--json"),
        "render board.yaml -o out --cache 'my cache' --engine animatic",
    ),
    (
        ("export", "board.yaml", "--to", "otio", "--engine=animatic", "--models", "a", "--models", "b c"),
        "render board.yaml --engine animatic --models a --models 'b c'",
    ),
    (("export", "./-b.yaml", "--to=otio", "--engine", "animatic"), "render ./-b.yaml --engine animatic"),
    (("plan", "wide.yaml", "-o", "my films", "--why"), "preview wide.yaml -o 'my films'"),
    (
        ("plan", "board.yaml", "--models", "my models", "--cache", "c"),
        "models download --models 'my models'",
    ),
    (("models", "list", "--models", "m n", "--json"), ""),
    (("models", "list", "--models", "m n"), "models download --variant 2.0-pro --models 'm n'"),
    (("cache", "gc", "board.yaml", "--cache", "my cache"), "cache gc board.yaml --yes --cache 'my cache'"),
    (("cache", "gc"), "cache gc --yes"),
    (("new", "my film"), "render 'my film' --engine animatic"),
    (("new", "-film.yaml"), ""),
]


@pytest.mark.parametrize(("words", "hint"), HINTS)
def test_hints_repeat_what_was_given(
    svi_story: Run, write_board: Write, words: tuple[str, ...], hint: str
) -> None:
    write_board()
    write_board("-b.yaml")
    write_board("wide.yaml", reference="tall.png")
    Image.new("RGB", (100, 1000), "teal").save("tall.png")
    for cache in ("renders/.cache", "my cache"):  # something to delete
        unfinished = Path(cache, "work", "a" * 64)
        unfinished.mkdir(parents=True)
        os.utime(unfinished, (0, 0))
    ended = svi_story(*words)
    suggested = re.findall(r"svi-story (?:[^\s`;']|'[^']*'| (?!\())+", ended.err + ended.out)
    assert any(each.strip() == f"svi-story {hint}" for each in suggested) == bool(hint), ended


def test_a_bundle_is_named_in_commands_not_what_it_was_unpacked_to(
    svi_story: Run, write_board: Write
) -> None:
    Image.new("RGB", (100, 1000), "teal").save("tall.png")
    board = write_board("wide.yaml", reference="tall.png")
    assert svi_story("export", board, "--to", "bundle", "--engine", "animatic").code == 0
    told = svi_story("validate", "renders/wide.zip", "--engine", "svi", "--cache", "my cache").err
    assert "`svi-story preview renders/wide.zip --cache 'my cache' --engine svi`" in told


def test_a_full_disk_suggests_to_clean_up_that_cache(
    svi_story: Run, write_board: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards = [write_board(f"storyboards/{name}.yaml", reference="../anchor.png") for name in "abcd"]

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("svi_story.cache.work.write_frames", full)
    few = svi_story("render", *boards[:2], "--engine", "animatic", "--cache", "my cache", "--retries", 0)
    assert f"`svi-story cache gc {boards[0]} {boards[1]} --cache 'my cache'`" in few.err
    many = svi_story("render", *boards, "--engine", "animatic", "--retries", 0)
    assert f"`svi-story cache gc {boards[0].parent}`" in many.err


def test_workers_and_the_python_interface_suggest_as_their_caller_would(
    tmp_path: Path, write_board: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise RenderError(suggest("cache gc"))

    setup = WorkerSetup(EngineOptions(), tmp_path, tmp_path)
    monkeypatch.setattr("svi_story.render.distributed.worker._wait_for", full)
    given = {"cache gc": Given(("board.yaml",), (("--cache", "c"),))}
    for told, command in ((given, "svi-story cache gc board.yaml --cache c"), ({}, "svi-story cache gc")):
        *_, error = Worker(replace(setup, given=told)).enter(())
        assert str(error) == command
    Image.new("RGB", (100, 1000), "teal").save("tall.png")
    (board,) = api.validate(write_board(reference="tall.png"))
    assert board.plan
    assert any(f"`svi-story preview {tmp_path}/board.yaml`" in str(lint) for lint in board.plan.lints)


def test_what_is_suggested_suits_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    with repeating({"cache gc": Given(("a b.yaml",), (("--cache", "it's"), ("--engine", "svi")))}):
        posix = suggest("cache gc", "--engine", "animatic")
        assert shlex.split(posix)[3:] == ["a b.yaml", "--engine", "animatic", "--cache", "it's"]
        monkeypatch.setattr(portable, "IS_POSIX", False)
        assert suggest("cache gc") == 'svi-story cache gc "a b.yaml" --cache it\'s --engine svi'
    assert suggest("cache gc") == "svi-story cache gc"


PLAIN = ("svi-story export BOARD", "svi-story new NAME", "svi-story config", "svi-story watch")
"""For others, for a new board, in a file and on a page: no options apply."""


def test_every_suggested_command_comes_from_one_place() -> None:
    """In the text of messages there is no command without the user's options."""
    names = "|".join(get_command(app).commands)  # type: ignore[attr-defined]  # it is a group
    commands = re.compile(rf"svi-story ({names})\b[^`]{{0,20}}")
    found = []
    for path in Path(package.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found += [
            f"{path.name}:{node.lineno}: {match.group()}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
            for match in commands.finditer(node.value)
            if not match.group().startswith(PLAIN)
        ]
    assert not found
