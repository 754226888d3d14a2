"""The house: imports go down only, rooms stay small, and nothing heavy is loaded at the door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import svi_story

HOUSE = Path(svi_story.__file__).parent
ROOMS = [
    *("errors", "events", "files", "media", "storyboard", "plan", "cache"),
    *("engines", "cut", "review", "render", "cli"),
]
HEAVY = ("torch", "diffusers", "transformers", "moviepy", "av", "ray")
MODULES = sorted(path for path in HOUSE.rglob("*.py") if path.parent != HOUSE or path.stem in ROOMS)


def room_of(module: str) -> str:
    """The room that a dotted module name lies in; empty for the package itself."""
    return module.split(".")[1] if module.startswith("svi_story.") else ""


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "svi_story"}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_go_down_only(path: Path) -> None:
    room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
    for module in imports_of(path):
        other = room_of(module)
        if other in ROOMS:
            assert ROOMS.index(other) <= ROOMS.index(room), f"{room} looks up into {module}"


def test_every_room_has_its_place() -> None:
    rooms = {path.relative_to(HOUSE).parts[0].removesuffix(".py") for path in MODULES}
    assert rooms <= set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_only_the_cli_prints_or_exits(path: Path) -> None:
    if path.relative_to(HOUSE).parts[0] == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "exit", "sys.exit"), f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_rooms_stay_small(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("command", [["--help"], ["schema"], ["render", "--help"], ["validate", "--help"]])
def test_nothing_heavy_is_loaded_at_the_door(command: list[str]) -> None:
    program = (
        "import sys, atexit; sys.argv = ['svi-story', *sys.argv[1:]]\n"
        "from svi_story.cli import main\n"
        f"atexit.register(lambda: sys.stderr.write(' '.join(set({HEAVY!r}) & set(sys.modules))))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


READERS = {
    "files.py": "where it is done",
    "cli/app.py": "the null device",
    "engines/svi/ladder.py": "/proc",
    "render/doctor.py": "/proc",
    "media/fonts.py": "a font of the package",
    "media/text.py": "a layout of the package",
    "review/report.py": "a page of the package",
    "storyboard/templates.py": "templates of the package",
}
"""Who may open files to read them: a pipe or a device may lie in the place of any other file."""
LIBRARIES = ("av", "Image", "archive")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_files_are_read_with_svi_story_files_alone(path: Path) -> None:
    if path.relative_to(HOUSE).as_posix() in READERS:
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            assert not reads_a_file(node), f"line {node.lineno}: use svi_story.files"


def reads_a_file(call: ast.Call) -> bool:
    """Whether it opens a file for reading, by whatever name."""
    function = ast.unparse(call.func)
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_bytes", "read_text"):
        return True
    if function == "os.open":
        return True
    is_method = isinstance(call.func, ast.Attribute) and call.func.attr == "open"
    if function != "open" and not (is_method and function.removesuffix(".open") not in LIBRARIES):
        return False
    given = [word.value for word in call.keywords if word.arg == "mode"]
    given += call.args[not is_method :][:1]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else "r"
    return not set("xaw+") & set(str(mode))


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("path.open()", True), ("path.open('rb')", True), ("path.open(mode='r')", True), ("open(path)", True),
        ("open(path, 'rb')", True), ("path.read_text('utf-8')", True), ("os.open(path, flags)", True),
        ("path.open('xb')", False), ("path.open('r+b')", False), ("open(path, 'w')", False),
        ("av.open(path)", False),
    ],
)  # fmt: skip
def test_what_counts_as_reading(text: str, reads: bool) -> None:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert reads_a_file(call) == reads
