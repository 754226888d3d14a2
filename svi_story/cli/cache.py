"""Commands about the cache: ls, verify, gc."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svi_story.cli.options import AsJson, Cache, Projects, caches_of
from svi_story.cli.terminal import answer, answer_json, complain, in_bytes, shorten, table
from svi_story.commands import suggest
from svi_story.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.cache.garbage import Garbage, Usage
    from svi_story.cache.store import Store

cache_app = typer.Typer(
    no_args_is_help=True,
    help="List, verify and clean up finished segments.",
    rich_markup_mode=None,
    add_completion=False,
)


WEEK = timedelta(days=7)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(cache_app, name="cache")


def stores_of(projects: Sequence[Path] | None, cache: Path | None) -> list[Store]:
    """The stores that a command is about; what is wrong with them is reported on standard error."""
    from svi_story.cache.store import Store
    from svi_story.cli.console import warn

    return [Store(folder, warn) for folder in caches_of(projects, cache)]


@cache_app.command("ls")
def list_cache(projects: Projects = None, cache: Cache = None, as_json: AsJson = False) -> None:
    """List what is in the cache.

    \b
    svi-story cache ls
    svi-story cache ls --json
    """
    found = [item for store in stores_of(projects, cache) for item in store.usage()]
    if as_json:
        answer_json([_plain(asdict(item)) for item in found])
        return
    rows = [
        (
            item.kind,
            item.key[:12],
            in_bytes(item.bytes),
            datetime.fromtimestamp(item.last_used, UTC).strftime("%Y-%m-%d"),
            "yes" if item.in_use else "no",
            shorten(" ".join(str(item.notes.get(name, "")) for name in ("clip", "prompt", "board")), 60),
        )
        for item in found
    ]
    answer(*table(("kind", "key", "size", "last used", "in use", "clip and prompt"), rows))
    complain(f"{len(found)} items, {in_bytes(sum(item.bytes for item in found))}")


@cache_app.command()
def verify(projects: Projects = None, cache: Cache = None, as_json: AsJson = False) -> None:
    """Check every byte of the cache.

    What is damaged is quarantined, and rendered again when it is needed.

    \b
    svi-story cache verify
    """
    checked = [item for store in stores_of(projects, cache) for item in store.verify()]
    damaged = [item for item in checked if item.problem]
    if as_json:
        answer_json([_plain(asdict(item)) for item in checked])
    else:
        for item in damaged:
            answer(f"{item.path}: {item.problem}")
    complain(f"{len(checked)} checked, {len(damaged)} damaged")
    if damaged:
        raise typer.Exit(ExitCode.FAILED)


@cache_app.command()
def gc(
    projects: Projects = None,
    cache: Cache = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without this they are only listed.")] = False,
    takes: Annotated[
        bool,
        typer.Option("--takes", help="Also those takes that no film uses, with what continued from them."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what is not needed any more.

    That is what no existing film or board uses and nothing has used for a week; only with --yes. It also says
    what is kept, and until when. Takes that no film uses are kept too, unless --takes says otherwise.

    \b
    svi-story cache gc                  what would be deleted
    svi-story cache gc --yes            delete it
    svi-story cache gc my-film --yes    of the project in that folder
    """
    stores = stores_of(projects, cache)
    found: list[list[Garbage]] = [store.garbage(time.time(), takes=takes) for store in stores]
    items: Sequence[Garbage] = [item for garbage in found for item in garbage]
    usage = [item for store in stores for item in store.usage()]
    kept = _kept(usage, {item.path for item in items}, takes=takes)
    if yes:
        pairs = zip(stores, found, strict=True)
        items = [item for store, garbage in pairs for item in store.delete(garbage, takes=takes)]
    if as_json:
        answer_json([_plain(asdict(item)) for item in items])
    else:
        for item in items:
            answer(f"{item.path}: {in_bytes(item.bytes)}: {item.why}")
    amount = in_bytes(sum(item.bytes for item in items))
    if yes:
        complain(f"{amount} deleted", *kept)
    elif items:
        again = suggest("cache gc", *(["--takes"] if takes else []), "--yes")
        complain(f"{amount} would be deleted, with {again}", *kept)
    else:
        complain("nothing would be deleted", *kept)


def _kept(found: Sequence[Usage], deleted: set[Path], *, takes: bool) -> list[str]:
    """What stays, why, and until when; `takes`: whether those that no film uses may go."""
    kept = [item for item in found if item.path not in deleted]
    used = sum(item.bytes for item in kept if item.in_use)
    spare = sum(item.bytes for item in kept if item.for_takes)
    unused = [item for item in kept if not item.in_use]
    lines = [f"kept: {in_bytes(used)} in use, as long as its film or its board exists"] if used else []
    if spare:
        go = "they go" if takes else f"{suggest('cache gc', '--takes')} lets them go"
        lines.append(f"{in_bytes(spare)} of it for takes that no film uses; {go} after a week")
    if unused:
        days = sorted({f"{datetime.fromtimestamp(item.last_used, UTC) + WEEK:%Y-%m-%d}" for item in unused})
        until = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        amount = in_bytes(sum(item.bytes for item in unused))
        lines.append(f"kept: {amount} not in use, until {until}, a week after the last use")
    return lines


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {name: str(item) if isinstance(item, Path) else item for name, item in value.items()}
