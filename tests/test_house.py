"""Rules for the code: imports only go down, modules stay small, heavy imports are late."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import windows_like

import svi_story

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = Path(svi_story.__file__).parent
PACKAGES = [
    *("errors", "units", "events", "event_json", "portable", "commands", "files", "fields", "media"),
    *("enginespec", "storyboard", "settings", "plan", "cache", "engines", "cut", "bundle", "review"),
    *("render", "export", "api", "watch", "cli"),
]
HEAVY = ("torch", "diffusers", "transformers", "moviepy", "av", "ray")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in PACKAGES)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def for_every_module(check: Callable[[Path], None]) -> Callable[[], None]:
    """One test that runs a check on every module and lists all failures: two thousand tests would be slow."""

    def test() -> None:
        failures = []
        for path in MODULES:
            try:
                check(path)
            except AssertionError as error:
                failures.append(f"{path.relative_to(PACKAGE)}: {error}")
        assert not failures, "\n".join(failures)

    test.__doc__ = check.__doc__
    return test


def package_of(module: str) -> str:
    """The package that a dotted module name is in; empty for the package itself."""
    return module.split(".")[1] if module.startswith("svi_story.") else ""


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "svi_story"}
    return found


@for_every_module
def test_imports_go_down_only(path: Path) -> None:
    package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports_of(path):
        other = package_of(module)
        if other in PACKAGES:
            assert PACKAGES.index(other) <= PACKAGES.index(package), f"{package} looks up into {module}"


def test_every_package_has_its_place() -> None:
    packages = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert packages <= set(PACKAGES)


@for_every_module
def test_only_the_cli_prints_or_exits(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "cli":
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "exit", "sys.exit"), f"line {node.lineno}"


MAY_PRINT = {
    *("cli/terminal.py", "cli/console.py"),  # where all is brought onto one line
    *("cli/__init__.py", "cli/app.py"),  # whose words are their own
}


@for_every_module
def test_whatever_is_told_goes_through_one_place(path: Path) -> None:
    """There, control characters and line breaks in names are escaped."""
    if path.relative_to(PACKAGE).as_posix() not in MAY_PRINT:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert not re.fullmatch(
                    r"sys\.std(out|err)\.write|typer\.s?echo|.*console\.(print|log)", name
                ), f"line {node.lineno}"


@for_every_module
def test_modules_and_packages_stay_small(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 500
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name


@pytest.mark.parametrize("command", [["--help"], ["schema"], ["render", "--help"], ["validate", "--help"]])
def test_nothing_heavy_is_imported_at_the_start(command: list[str]) -> None:
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


POSIX = {
    *windows_like.MODULES,
    *(f"{module.__name__}.{name}" for module, names in windows_like.NAMES.items() for name in names),
}


@for_every_module
def test_what_windows_lacks_is_used_in_one_place(path: Path) -> None:
    """`mypy --platform win32` (`make types`) knows every such name; this finds the common ones at once."""
    if path.name in ("portable.py", "watchdog.py"):  # the watchdog's command refuses to start there
        return
    assert not imports_of(path) & POSIX
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in POSIX, f"line {node.lineno}"
        if isinstance(node, ast.keyword):
            assert (
                node.arg not in ("pass_fds", "preexec_fn", "start_new_session") or "distributed" in path.parts
            )


PROCESS_WIDE = {
    *(
        "register_namespace",
        "os.chdir",
        "os.fchdir",
        "os.umask",
        "os.putenv",
        "os.unsetenv",
        "locale.setlocale",
    ),
    *("warnings.catch_warnings", "warnings.simplefilter", "random.seed", "np.random.seed", "np.seterr"),
    *("torch.manual_seed", "torch.set_default_dtype", "torch.set_default_device", "torch.set_num_threads"),
    *("torch.use_deterministic_algorithms", "cv2.setNumThreads", "cv2.setRNGSeed", "cv2.setUseOptimized"),
    *(
        "socket.setdefaulttimeout",
        "sys.setrecursionlimit",
        "sys.setswitchinterval",
        "gc.disable",
        "gc.freeze",
    ),
    *("decimal.setcontext", "decimal.getcontext", "logging.basicConfig", "logging.disable", "signal.signal"),
    *("os.environ.update", "os.environ.pop", "os.environ.setdefault", "os.environ.clear", "mimetypes.init"),
    *("contextlib.redirect_stdout", "contextlib.redirect_stderr", "redirect_stdout", "redirect_stderr"),
}
"""What one thread does and all others get."""
PROCESS_WIDE_NAMES = ("MAX_IMAGE_PIXELS", "LOAD_TRUNCATED_IMAGES", "tempdir", "environ", "excepthook")
ALONE = {
    ("cli/__init__.py", "signal.signal"),  # the first thing that the program does
    ("media/guard_child.py", "signal.signal"),  # the first thing that a process of its own does
    ("render/distributed/watchdog.py", "signal.signal"),  # the first thing that a process of its own does
    ("render/distributed/worker.py", "environ"),  # the first thing that a process of its own does
    ("engines/svi/compiled.py", "environ"),  # torch's only way to be told, and read by torch alone
    ("engines/svi/device.py", "torch.set_num_threads"),  # once, before the first number
    ("render/doctor.py", "warnings.catch_warnings"),  # a command without threads
    ("render/doctor.py", "warnings.simplefilter"),
}
"""Where it may be done."""


def changes_of_process(path: Path) -> set[str]:
    """What of the whole process a module changes."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found |= {name, name.rpartition(".")[2]} & PROCESS_WIDE
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            whole = target.value if isinstance(target, ast.Subscript) else target
            if isinstance(whole, ast.Attribute) and whole.attr in PROCESS_WIDE_NAMES:
                found.add(whole.attr)
    return found


@for_every_module
def test_no_thread_changes_what_all_threads_share(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    assert {(name, change) for change in changes_of_process(path)} <= ALONE


LISTINGS = ("iterdir", "glob", "rglob", "walk", "scandir", "listdir")
SORTS = ("sorted", "sort", "min", "max")


def calls_in(node: ast.AST) -> list[str]:
    """The last part of the name of everything that is called somewhere inside."""
    return [
        ast.unparse(each.func).rpartition(".")[2] for each in ast.walk(node) if isinstance(each, ast.Call)
    ]


@for_every_module
def test_no_result_depends_on_the_order_of_a_folder(path: Path) -> None:
    """A function that lists a folder sorts."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            calls = calls_in(node)
            if set(calls) & set(LISTINGS) and node.name != "measure":  # which adds up and finds the newest
                assert set(calls) & set(SORTS), node.name


ORDERLESS = {*("sorted", "set", "frozenset", "min", "max", "sum", "len", "any", "all"), "Counter"}
"""What takes its arguments in any order."""
ORDERED = ("list", "tuple", "enumerate", "zip", "map", "join", "chain", "next", "iter", "extend", "fromkeys")


def is_set(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression is a set, as far as it can be seen in one function."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
        return is_set(node.left, names) or is_set(node.right, names)
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in ("set", "frozenset")
    return isinstance(node, ast.Set | ast.SetComp) or (isinstance(node, ast.Name) and node.id in names)


def ordered_uses(function: ast.FunctionDef) -> list[str]:
    """Where a function takes the members of a set one after the other, and the order may matter."""
    names = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and is_set(node.value, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found: list[str] = []
    free: set[ast.AST] = set()
    for node in ast.walk(function):  # from the outside in
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in ORDERLESS or node in free:
                free |= {*node.args}
            elif name in ORDERED and any(is_set(each, names) for each in node.args):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.For) and is_set(node.iter, names):
            found.append(ast.unparse(node.iter))
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp) and node not in free:
            found += [ast.unparse(node) for each in node.generators if is_set(each.iter, names)]
    return found


@for_every_module
def test_no_result_depends_on_the_order_of_a_set(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            assert ordered_uses(node) == [], f"{node.name}: sort it, or use dict.fromkeys"


CONTAINERS = ("av.open", "archive.open")
"""They know modes as files do, and hold no text."""


def unnamed_encodings(path: Path) -> list[str]:
    """Where text is read or written in the encoding of the user's locale."""
    found = []
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call) or any(each.arg == "encoding" for each in node.keywords):
            continue
        name, words = ast.unparse(node.func), [ast.unparse(each) for each in (*node.args, *node.keywords)]
        if name.endswith((".read_text", ".write_text")):
            named = "'utf-8'" in words or "'ascii'" in words
        elif name.endswith(("open", "TemporaryFile")) and name not in CONTAINERS:
            named = not any(re.fullmatch("(mode=)?'[rwxat+]+'", word) for word in words)
        else:
            named = not {"text=True", "universal_newlines=True"} & set(words)
        found += [] if named else [ast.unparse(node)]
    return found


@for_every_module
def test_no_text_depends_on_the_locale(path: Path) -> None:
    assert unnamed_encodings(path) == []


READERS = {
    "files.py": "where it is done",
    "cli/streams.py": "the null device and the standard streams",
    "cli/terminal.py": "the null device",
    "engines/svi/weights/download.py": "what it has begun to write",
    "media/guard_child.py": "/proc",
    "engines/svi/device.py": "/sys",
    "media/text.py": "fonts and a layout of the package",
    "review/report.py": "a page of the package",
    "watch/server.py": "a page of the package",
    "storyboard/templates.py": "templates of the package",
}
"""Who may open files to read them: a pipe or a device may lie in the place of any other file."""
LIBRARIES = ("av", "Image", "archive")


@for_every_module
def test_files_are_read_with_svi_story_files_alone(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix() in READERS:
        return
    for node in ast.walk(tree_of(path)):
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
