"""The command line: its commands, and the one place where errors become exit codes."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup

from svi_story import __version__
from svi_story.cli import boards, cache, config, doctor, export, models, plan, render, review, watch
from svi_story.cli.options import Command
from svi_story.cli.terminal import Stopped, complain, give_up_output, log_bug
from svi_story.errors import ExitCode, InputError, StoryError


class ErrorBoundary(TyperGroup):
    """Turns every way to fail into a message for people and an exit code: known 1 or 2, bug 3, ^C 130."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line, and end with its exit code."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False}) or ExitCode.DONE
        except typer.TyperException as error:
            complain(*_usage(error))
            code = getattr(error, "exit_code", ExitCode.NOT_STARTED)
        except typer.Abort:
            complain("stopped; nothing was started")
            code = ExitCode.FAILED
        except OSError as error:  # what is written before a command runs, as its help
            code = give_up_output(error)
        try:
            sys.stdout.flush()
        except OSError as error:
            code = code or give_up_output(error)
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            _check_folder()
            return super().invoke(ctx)
        except StoryError as error:
            for problem in error.problems:
                complain(str(problem))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            again = str(error) or "the same command again"
            how = "stopped, as requested" if isinstance(error, Stopped) else "interrupted"
            complain(f"{how}; what was done is kept. To go on: {again}")
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        except (typer.TyperException, typer.Exit, typer.Abort):
            raise
        except OSError as error:
            # Our own files are guarded where they are written: this is the world, as a full standard output.
            raise typer.Exit(give_up_output(error)) from error
        except Exception as error:
            complain(f"this is a bug in svi-story, not your mistake: {type(error).__name__}: {error}")
            complain(f"please report it with this log: {log_bug(traceback.format_exc())}")
            raise typer.Exit(ExitCode.BUG) from error


def _usage(error: typer.TyperException) -> list[str]:
    """The message for a command line that cannot be parsed."""
    _explain(error)
    context, message = getattr(error, "ctx", None), error.format_message()
    if context is None:
        return [f"Error: {message}"]
    if message == context.get_help():  # no command was named
        return message.splitlines()
    usage = context.get_usage().splitlines()
    return [*usage, f"Try '{context.command_path} --help' for help.", "", f"Error: {message}"]


NOT_A_VALUE = {
    "int_parsing": "{input!r} is not a whole number",
    "greater_than_equal": "{input} is less than {ge}",
    "less_than_equal": "{input} is more than {le}",
}
"""What is wrong with an argument, by pydantic's name for it: its own messages are for programmers."""


def _explain(error: typer.TyperException) -> None:
    """Say in plain words what is wrong with an argument's value."""
    if isinstance(error.__cause__, ValidationError):
        first = error.__cause__.errors()[0]
        if words := NOT_A_VALUE.get(first["type"]):
            error.message = words.format(input=first["input"], **first.get("ctx", {}))


def _check_folder() -> None:
    """Raises InputError when the working directory was deleted."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise InputError("the current folder does not exist any more; cd into one that does") from error


app = typer.Typer(
    name="svi-story",
    cls=ErrorBoundary,
    no_args_is_help=True,
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
    svi-story plan my-film                     see what would be rendered
    svi-story render my-film --engine animatic a preview, on any machine
    svi-story render boards/                   a whole folder, overnight
    """


boards.register(app)
plan.register(app)
render.register(app)
export.register(app)
watch.register(app)
review.register(app)
cache.register(app)
models.register(app)
config.register(app)
doctor.register(app)
for each in (app, *(group.typer_instance for group in app.registered_groups)):
    for registered in each.registered_commands if each else ():
        if not issubclass(registered.cls or TyperCommand, Command):
            registered.cls = Command
