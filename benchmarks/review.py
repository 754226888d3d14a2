"""Does the review find the films that degrade, and no others?  Films and labels are not in the repository.

.venv/bin/python benchmarks/review.py FOLDER

FOLDER holds films, and labels.csv: film name, label (1 degrades, 0 does not, m anything between), second.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.review.video import review_video

if TYPE_CHECKING:
    from svi_story.review.results import FilmReview

NEAR = 15
"""Seconds between the label and the answer that still count as found."""


def main(folder: Path) -> None:
    """Print a table of all films, and what it comes to."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        labels = {row[0]: (row[1], row[2] if len(row) > 2 else "") for row in csv.reader(file) if row}
    print("| film | label | verdict | what, since | judged | re-timed | other warnings | ms a frame |")
    print("|---|---|---|---|---|---|---|---|")
    found = false = 0
    for path in sorted(each for each in folder.iterdir() if each.suffix in (".mp4", ".mkv", ".webm", ".mov")):
        label, since = labels.get(path.stem, ("", ""))
        started = time.perf_counter()
        review = review_video(path, None, None, lambda _event: None)
        spent = 1000 * (time.perf_counter() - started) / review.frames
        print(row_of(path, f"{label} {since}".strip(), review, spent), flush=True)
        degraded = [each for each in review.findings if each.kind == "degradation"]
        false += label == "0" and bool(degraded)
        near = [each for each in degraded if since and abs((each.since or 0) - float(since)) <= NEAR]
        found += label == "1" and bool(near)
    total = sum(label == "1" for label, _ in labels.values())
    good = sum(label == "0" for label, _ in labels.values())
    print(f"\nFound within {NEAR} s of the label: {found} of {total}. False alarms: {false} of {good}.")


def row_of(path: Path, label: str, review: FilmReview, spent: float) -> str:
    """A film's row."""
    degraded = [each for each in review.findings if each.kind == "degradation"]
    what = ", ".join(f"{each.what} {each.since:g} s" for each in degraded) or "-"
    others = sorted({each.kind for each in review.findings} - {"degradation"})
    counts = (
        ", ".join(f"{sum(each.kind == kind for each in review.findings)} {kind}" for kind in others) or "-"
    )
    facts = review.facts
    retimed = f"{float(review.fps * facts.retiming.ratio):g} fps" if facts and facts.retiming else "-"
    cells = (path.stem, label, review.verdict, what, f"{100 * review.judged_share:.0f} %", retimed, counts)
    return f"| {' | '.join(cells)} | {spent:.1f} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
