"""Draw the reference images of the storyboards and templates again.

Run `python storyboards/images/draw`; it needs Pillow and numpy. The same versions draw the same pixels.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import balloon
import boat
import brush
import cat
import fox
import lighthouse
import street

IMAGES = Path(__file__).resolve().parents[1]
TEMPLATES = IMAGES.parents[1] / "templates"

COPIES = {
    "minimal/images/reference.jpg": "boat",
    "story/images/reference.jpg": "boat",
    "scenes/images/reference.jpg": "boat",
    "scenes/images/second.jpg": "lighthouse",
}
"""Templates carry their own copies, so that each folder can be copied away whole."""


def main() -> None:
    """Draw everything, then give the templates their copies."""
    for picture in (balloon, boat, cat, fox, lighthouse, street):
        brush.save(picture.draw(), _file(picture.__name__))
    for place, name in COPIES.items():
        target = TEMPLATES / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_file(name), target)


def _file(name: str) -> Path:
    return IMAGES / f"{name}.jpg"


if __name__ == "__main__":
    main()
