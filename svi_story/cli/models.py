"""Commands about weights: list, check, download."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svi_story.cli.options import AsJson, Models, one_of, settings_here
from svi_story.cli.terminal import answer, answer_json, complain, in_bytes, shorten, table
from svi_story.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.engines.svi.weights.catalogue import PartStatus
    from svi_story.engines.svi.weights.download import DownloadItem
    from svi_story.engines.svi.weights.hashes import Progress
    from svi_story.enginespec.sampling import Variant

models_app = typer.Typer(
    no_args_is_help=True, help="Look after the weights.", rich_markup_mode=None, add_completion=False
)

PRESETS = ("quality", "fast", "draft")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(models_app, name="models")


def variant_named(name: str) -> Variant | None:
    """The variant the user wants; None without a wish. Raises a usage error."""
    from svi_story.engines.svi.weights.catalogue import VARIANTS

    if name:
        one_of(name, VARIANTS, "--variant")
    return next((variant for variant in VARIANTS if variant == name), None)


@models_app.command("list")
def list_models(models: Models = None, as_json: AsJson = False) -> None:
    """List the weights that are there, and what can be rendered with them.

    Looks at names, sizes and headers; `models check` reads every byte.

    \b
    svi-story models list
    svi-story models list --models /data/models --json
    """
    from svi_story.engines.svi.weights.catalogue import VARIANTS, list_parts, problems_of
    from svi_story.files import short_path

    models = models or short_path(settings_here().models[0])
    statuses = list_parts(models)
    ready = {variant: not problems_of(statuses, variant) for variant in VARIANTS}
    if as_json:
        parts = [_as_json(status) for status in statuses]
        answer_json({"models": str(models.resolve()), "parts": parts, "variants": ready})
        return
    rows = [
        (status.part.what, status.state, in_bytes(status.bytes), _place(status, models))
        for status in statuses
    ]
    answer(*table(("part", "state", "size", "place"), rows))
    for variant in VARIANTS:
        lacking = problems_of(statuses, variant)
        remedy = f"see what is missing with: svi-story models check --variant {variant}"
        complain(f"SVI {variant}: {'ready' if not lacking else f'not ready; {remedy}'}")
    fast = (
        "ready"
        if not problems_of(statuses, "2.0", "fast")
        else "not ready (they need the LightX2V LoRA pair)"
    )
    complain(f"presets fast and draft of SVI 2.0: {fast}")


def _as_json(status: PartStatus) -> dict[str, Any]:
    return {
        "part": status.part.name,
        "state": status.state,
        "bytes": status.bytes,
        "files": [str(file) for file in status.files],
        "problems": [str(problem) for problem in status.problems],
    }


def _place(status: PartStatus, models: Path) -> str:
    """Where a part lies, or where it belongs."""
    if status.files:
        return str(status.files[0].parent)
    return str((models / status.part.source.folder / status.part.needed[0]).parent)


@models_app.command()
def check(
    models: Models = None,
    variant: Annotated[
        str, typer.Option("--variant", metavar="2.0|2.0-pro", help="What must be whole, instead of either.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Read every byte of the weights: headers, shards, shapes, numbers, hashes, LoRAs in their places.

    Ends with 1 when something is wrong. Without --variant, what is there must be right, and enough for one
    of the variants.

    \b
    svi-story models check
    svi-story models check --variant 2.0-pro --json
    """
    from svi_story.engines.svi.weights.catalogue import list_parts
    from svi_story.engines.svi.weights.inspection import inspect
    from svi_story.files import short_path

    models = models or short_path(settings_here().models[0])
    statuses = _asked(list_parts(models), variant_named(variant))
    with transfers() as progress:
        report = inspect(models, statuses, progress)
    if as_json:
        files = [{**vars(each), "file": str(each.file)} for each in report.files]
        found = {"files": files, "problems": [str(each) for each in report.problems], "notes": report.notes}
        answer_json({"models": str(models.resolve()), **found})
    elif report.files:
        rows = [
            (each.part, in_bytes(each.bytes), each.sha256, each.known or "unknown", str(each.file))
            for each in report.files
        ]
        answer(*table(("part", "size", "sha256", "known as", "file"), rows))
    for note in report.notes:
        complain(f"note: {note}")
    for problem in report.problems:
        complain(str(problem))
    complain(f"{len(report.files)} files checked, {len(report.problems)} problems")
    if report.problems:
        raise typer.Exit(ExitCode.FAILED)


def _asked(statuses: Sequence[PartStatus], variant: Variant | None) -> list[PartStatus]:
    """What a check is about: a variant, or all that is there and what no variant can do without."""
    from svi_story.engines.svi.weights.catalogue import BASE, VARIANTS, parts_for

    if variant:
        return [status for status in statuses if status.part in parts_for(variant)]
    there = {status.part.name for status in statuses if status.state != "missing"}
    needed = {*BASE, *there}
    if not any(f"svi-{each}" in there for each in VARIANTS):
        needed.add("svi-2.0")
    return [status for status in statuses if status.part.name in needed]


@models_app.command()
def download(
    models: Models = None,
    variant: Annotated[
        str, typer.Option("--variant", metavar="2.0|2.0-pro", help="Which variant's LoRAs.")
    ] = "2.0",
    preset: Annotated[
        str, typer.Option("--preset", metavar="fast", help="Also what the presets fast and draft need.")
    ] = "quality",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")] = False,
) -> None:
    """Download what a variant needs and is not there.

    Shows what, how much, under which licence and where to before anything starts. An interrupted download
    goes on when the command is run again. Nothing else in svi-story ever downloads.

    \b
    svi-story models download
    svi-story models download --variant 2.0-pro --preset fast --yes
    HF_TOKEN=... svi-story models download
    """
    from svi_story.engines.svi.weights.catalogue import parts_for
    from svi_story.engines.svi.weights.download import Hub, check_space, fetch, prepare
    from svi_story.files import short_path

    models = models or short_path(settings_here().models[0])
    wanted = parts_for(variant_named(variant) or "2.0", one_of(preset, PRESETS, "--preset"))
    hub = Hub()
    with transfers() as progress:
        items = prepare(models, wanted, hub, progress)
    _show(items, models)
    if any(not item.there for item in items):
        check_space(models, items)
        _agree(yes=yes)
        total = sum(item.to_read for item in items)
        with transfers("downloaded", total) as progress:
            fetch(models, items, hub, progress)
    for item in items:
        answer(str(item.target))


def _show(items: Sequence[DownloadItem], models: Path) -> None:
    """Show what would be downloaded: source, licence, size and destination."""
    from svi_story.engines.svi.weights.download import free_space

    missing = [item for item in items if not item.there]
    sources = list(dict.fromkeys((item.offer.repo, item.licence, item.source.folder) for item in missing))
    rows = []
    for repo, licence, folder in sources:
        mine = [item for item in missing if item.offer.repo == repo]
        size = in_bytes(sum(item.to_read for item in mine))
        rows.append((repo, licence, str(len(mine)), size, str(models / folder)))
    if rows:
        complain(*table(("repository", "licence", "files", "to download", "place"), rows))
    for item in missing:
        if item.replaces:
            complain(f"{item.target}: {item.replaces}; it will be replaced")
    total, free = in_bytes(sum(item.to_read for item in missing)), in_bytes(free_space(models))
    there = f"{len(items) - len(missing)} of {len(items)} files are there"
    complain(f"{there}; {total} to download; {free} free" if missing else there)


def _agree(*, yes: bool) -> None:
    """Go on only with the user's consent."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody can be asked here; start the download with --yes")
    if not typer.confirm("Download?", err=True):
        raise typer.Exit(ExitCode.NOT_STARTED)


@contextmanager
def transfers(done: str = "", total: int = 0) -> Iterator[Progress]:
    """Progress of big files: a bar for each on a terminal, and one for `total` bytes if there is a total.

    Elsewhere `done` once for each, if there is a word.
    """
    if sys.stderr.isatty():
        with _bars(total) as show:
            yield show
        return
    reported: set[str] = set()

    def progress(name: str, count: int, size: int) -> None:
        if done and count >= size and name not in reported:
            reported.add(name)
            complain(f"{name}: {done}")

    yield progress


@contextmanager
def _bars(total: int) -> Iterator[Progress]:
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    text = rich.TextColumn("{task.description}", markup=False)
    columns = (text, rich.BarColumn(), rich.DownloadColumn(), rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=console, transient=True) as bars:
        everything = bars.add_task("all files", total=total, visible=total > 0)
        tasks: dict[str, rich.TaskID] = {}
        before: dict[str, int] = {}

        def show(name: str, count: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(shorten(name, 60), total=size)
            bars.update(tasks[name], completed=count, total=size)
            bars.advance(everything, count - before.get(name, count))
            before[name] = count
            if count >= size:
                bars.remove_task(tasks.pop(name))

        yield show
