"""The commands for a running render: watch and stop."""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svi_story.cli.options import BoardOptions, Cache, Paths, caches_of, settings_here, with_board_options
from svi_story.cli.terminal import answer, complain
from svi_story.errors import InputError, Problem
from svi_story.portable import lower_priority

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.render.runs import RunReport, Stop


RUN = re.compile(r"[\w-]+")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(watch)
    app.command()(stop)


@with_board_options
def watch(
    paths: Paths,
    options: BoardOptions,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Where to listen. Default: this machine only.")
    ] = "",
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="PORT", min=0, max=65535, help="Default: 8765. 0: any that is free."),
    ] = None,
) -> None:
    """Serve a live page that shows renders, clips and films.

    Whoever opens the page needs the address that is printed: it contains a token.
    [watch] in your own svi-story.toml may set other defaults for --host and --port.

    \b
    svi-story watch boards/
    ssh -L 8765:localhost:8765 gpu-server     then open the printed address here
    """
    from svi_story.fields import format_value
    from svi_story.watch.server import WatchServer, bind, serve
    from svi_story.watch.state import Watched

    absent = [path for path in paths if not os.path.lexists(path)]
    if len(absent) == len(paths):
        raise InputError(*(Problem("does not exist; check the path", file=str(path)) for path in absent))
    own = settings_here().watch
    host, port = host or own.host, own.port if port is None else port
    try:
        listening = bind(host, port)
    except (socket.gaierror, TypeError, UnicodeError) as error:
        what = f"cannot listen on {format_value(host)}, which is no name or address of this machine"
        raise InputError(f"{what}; choose another --host") from error
    except OSError as error:
        is_port = error.errno != errno.EADDRNOTAVAIL
        remedy = "choose another --port, or 0 for any that is free" if is_port else "choose another --host"
        what = f"cannot listen on {host}, port {port}: {error.strerror or error}"
        raise InputError(f"{what}; {remedy}") from error
    with listening:
        is_local = host in ("127.0.0.1", "::1", "localhost")
        names = () if is_local else (host, socket.gethostname())
        server = WatchServer(Watched(paths, options.given()), (*names, *own.names))
        address = listening.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        if not is_local and address[0] in ("0.0.0.0", "::"):  # noqa: S104 - the user asked for it
            shown = socket.gethostname()
        answer(f"http://{shown}:{address[1]}{server.prefix}/?token={server.token}")
        sys.stdout.flush()
        complain("the address contains the token; ^C ends the page and no render")
        if not is_local:
            complain("warning: the page is not encrypted; on networks of others use ssh -L instead of --host")
        lower_priority()  # the render goes first
        with suppress(KeyboardInterrupt):
            serve(server, listening)


def stop(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|PATH",
            help="The run, as `status` names it, or what it renders. Default: the only run of the project "
            "of the working directory.",
            show_default=False,
        ),
    ] = None,
    now: Annotated[
        bool, typer.Option("--now", help="Stop at once, like ^C, instead of after the current clip.")
    ] = False,
    cache: Cache = None,
) -> None:
    """Stop a running render. What is rendered is kept, and the same command continues it.

    \b
    svi-story stop             after the current clip
    svi-story stop --now       at once; sampling resumes from the last checkpoint
    svi-story stop my-film     the render of the board in that folder
    """
    from svi_story.cache.layout import Layout
    from svi_story.render.runs import STOPS, request_stop

    names = [word for word in words or () if RUN.fullmatch(word) and not os.path.lexists(word)]
    paths = [Path(word) for word in words or () if word not in names]
    folder, report = _running(names, paths, caches_of(paths, cache))
    kind: Stop = "now" if now else "clip"
    request_stop(Layout(folder).runs / report.run, kind)
    answer(f"run {report.run} stops {STOPS[kind]}")


def _running(names: Sequence[str], paths: Sequence[Path], caches: Sequence[Path]) -> tuple[Path, RunReport]:
    """The run to stop, and its cache. Raises InputError if it is not clear which one."""
    from svi_story.files import short_path
    from svi_story.render.runs import read_runs

    running = [
        (cache, each) for cache in caches for each in read_runs(cache) if each.state in ("running", "hanging")
    ]
    boards = [path for path in paths if not path.is_dir()]
    chosen = [
        (cache, each)
        for cache, each in running
        if (not names or each.run.startswith(tuple(names)))
        and (not boards or any(_may_render(each, board) for board in boards))
    ]
    if len(chosen) == 1:
        return chosen[0]
    found = ", ".join(f"{each.run} ({_rendered(each)})" for _, each in chosen or running)
    if not running:
        what = "no render is running that uses this cache"
        if names:
            what += f", and there is no file {' '.join(names)}"
        if not paths:
            what += "; name its cache with --cache, or what it renders"
    elif not chosen:
        meant = " ".join((*names, *map(str, boards)))
        what = f"no running render is called {meant} or renders that; running are {found}"
    else:
        what = f"{len(chosen)} renders are running; name one of them: {found}"
    there = [cache for cache in caches if cache.exists()] or caches
    raise InputError(Problem(what, file=", ".join(str(short_path(cache)) for cache in there)))


def _may_render(run: RunReport, board: Path) -> bool:
    """Whether a run renders a board: its log names a board as soon as something happens to it."""
    progress, folder = run.progress, run.progress.opened.folder if run.progress.opened else Path()
    known = {os.path.realpath(folder / each) for each in progress.boards}
    return os.path.realpath(board) in known or len(known) < progress.number_of_boards


def _rendered(run: RunReport) -> str:
    """The boards of a run."""
    boards = ", ".join(map(str, run.progress.boards))
    more = run.progress.number_of_boards - len(run.progress.boards)
    return f"{boards} and {more} more" if boards and more > 0 else boards or "starting"
