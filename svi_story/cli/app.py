"""The command line: its commands, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from svi_story import __version__
from svi_story.cli import boards, doctor, films, models, storage
from svi_story.cli.terminal import BUG, INTERRUPTED, complain, log_bug
from svi_story.errors import StoryError

if TYPE_CHECKING:
    from types import FrameType


class ErrorBoundary(TyperGroup):
    """Turns every way to fail into a message for people and an exit code: known 1 or 2, bug 3, ^C 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except StoryError as error:
            for problem in error.problems:
                complain(str(problem))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            complain("interrupted; what was done is kept. To go on, run the same command again")
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            # Whoever read our output has left: say nothing more, not even from the interpreter's exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from error
        except (typer.TyperException, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            complain(f"this is a bug in svi-story, not your mistake: {type(error).__name__}: {error}")
            complain(f"please report it with this log: {log_bug(traceback.format_exc())}")
            raise typer.Exit(BUG) from error


app = typer.Typer(
    name="svi-story",
    cls=ErrorBoundary,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:  # noqa: FBT001 - the signature of a Typer callback
    if value:
        sys.stdout.write(f"svi-story {__version__}\n")
        raise typer.Exit


@app.callback()
def svi_story(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A YAML storyboard goes in, a long, consistent AI film comes out.

    \b
    svi-story new my-film                      start from a template
    svi-story plan my-film                     see what would be made
    svi-story render my-film --engine animatic a preview, on any machine
    svi-story render boards/                   a whole folder, over night
    """


boards.register(app)
films.register(app)
storage.register(app)
models.register(app)
doctor.register(app)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run() -> None:
    """Run the command that was typed; SIGTERM stops it just as ^C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # text streams of an interpreter
    app()
