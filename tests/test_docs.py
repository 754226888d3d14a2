"""The documents tell the truth: generated ones are fresh, and the README's commands run as written."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from svi_story.cli.app import app
from svi_story.cli.options import BoardOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from conftest import Ended

    Run = Callable[..., Ended]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_documents_are_fresh() -> None:
    made = generator()
    assert (ROOT / "docs/cli.md").read_text("utf-8") == made.cli_reference(), "run `make docs`"
    assert (ROOT / "docs/storyboard.schema.json").read_text("utf-8") == made.schema(), "run `make docs`"
    memory = (ROOT / "docs/memory.md").read_text("utf-8")
    assert made.memory_table() in memory, "run `make docs`"
    page = (ROOT / "docs/json.md").read_text("utf-8")
    assert page == made.json_page(page), "run `make docs`"


def test_every_command_is_in_the_readme() -> None:
    for words in generator().COMMANDS:
        assert not words or re.search(rf"`{words[0]}\b", README), words


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words, as Click knows it."""
    groups: Any = typer.main.get_command(app)
    for name, command in groups.commands.items():
        inner = getattr(command, "commands", None)
        yield from ((f"{name} {word}", each) for word, each in inner.items()) if inner else ((name, command),)


def test_every_option_is_documented() -> None:
    reference = (ROOT / "docs/cli.md").read_text("utf-8")
    for words, command in commands():
        section = reference.partition(f"## `svi-story {words}`\n")[2].partition("\n## ")[0]
        for option in command.params:
            if option.param_type_name == "option":
                name = next(each for each in option.opts if each.startswith("--"))
                assert re.search(rf"{name}\b", section), (words, name)
                assert re.search(rf"{name}\b", README), (words, name)


def test_every_command_that_takes_boards_has_the_same_options() -> None:
    wanted = {field.name for field in fields(BoardOptions)}
    found: dict[str, dict[str, Any]] = {}
    for name, command in commands():
        if any(each.name in ("paths", "board") for each in command.params):
            found[name] = {
                each.name: (each.opts, each.default, each.envvar, each.help)
                for each in command.params
                if each.name in wanted
            }
    assert sorted(found) == ["export", "plan", "preview", "render", "review", "status", "validate", "watch"]
    assert set(found["render"]) == wanted
    for name, options in found.items():
        assert options == found["render"], name


def test_the_readme_s_commands_run(
    svi_story: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(picture, tmp_path / "frame.jpg")
    (tmp_path / "prompt.txt").write_text("prompts = ['The sea is rising.', 'The sea is falling.']")
    commands = [shlex.split(line) for line in LINES if line.startswith("svi-story ")]
    assert len(commands) >= 7
    for command in commands:
        ended = svi_story(*command[1:])
        assert ended.code == 0, (command, ended.err)


def test_the_readme_s_other_commands_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^(\w+):", makefile, re.MULTILINE)
    for line in LINES:
        if line.startswith("make "):
            assert line.split()[1] in targets
    recipe = makefile.replace("$(BIN)", ".venv/bin").replace("$(VENV)", ".venv")
    commands = [part for line in LINES for part in line.split(" && ") if part.startswith(".venv/bin/")]
    for command in commands:
        tool = Path(command.split()[0]).name
        assert tool in ("pip", "svi-story", "pytest") or command in recipe, command


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "storyboards/README.md")]
    for page in (*pages, *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_changelog_knows_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" in version["dynamic"]
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_dependency_s_licence_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / "docs/licences.md").read_text("utf-8")
    table = page[page.index("## What is installed") : page.index("## FFmpeg")]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    documented = {name for row in rows for name in re.findall(r"[\w-]+", row.lower())}
    extras = [each for some in project["optional-dependencies"].values() for each in some]
    for requirement in [*project["dependencies"], *extras]:
        assert re.split("[<>=]", requirement)[0].lower() in documented, requirement
