"""`python -m svi_story` is `svi-story`."""

from svi_story.cli import main

main()
