"""Parse, call, report: the only room that prints or exits."""


def main() -> None:
    """The `svi-story` command."""
    from svi_story.cli.app import run

    run()
