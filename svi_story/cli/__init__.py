"""Parse, call, report: the only package that prints or exits."""

import signal
import sys
from typing import NoReturn

from svi_story.cli.streams import open_streams
from svi_story.errors import ExitCode
from svi_story.portable import STOP_SIGNALS


def main() -> None:
    """The `svi-story` command. SIGTERM and the like stop it just as ^C does, from the first moment on."""
    open_streams()
    try:
        for number in STOP_SIGNALS:
            signal.signal(number, _interrupt)
        from svi_story.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before anything was started\n")
        raise SystemExit(ExitCode.INTERRUPTED) from None


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
