"""Does the same board make the same film, whatever memory, CPUs, hash seed, locale and time zone it finds?"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from common import HERE, Finding, Result, Table, finish, options, progress, workplace

from svi_story.cut.ffmpeg import portable_options

sys.path.insert(0, str(HERE.parent / "tests"))
from render_conditions import BOARDS, compile_filler, render, varied, write_boards

if TYPE_CHECKING:
    from common import Cell
    from render_conditions import Condition

SIZE = "208x112"
"""13 macroblocks wide: x264's AVX-512 code reads behind such rows."""
ABOUT = (
    "Every render is a process of its own with an empty cache, and renders all three boards: one with music, "
    "a voice, captions, a card and a fade, one encoded as AV1, one of many clips. What it finds is drawn by "
    "its number, so that a render can be repeated: `varied(number)` in `tests/render_conditions.py`."
)
MEMORY = (
    "*perturbed*: MALLOC_PERTURB_ with some byte. *filled*: a preloaded allocator fills all fresh memory "
    "with some byte. ffmpeg gets both too, through a program that sets them: it is started without them."
)


def report(films: dict[str, Counter[str]], conditions: list[Condition], seconds: float) -> Result:
    rows: list[tuple[Cell, ...]] = []
    for name in BOARDS:
        counted = films[name].most_common()
        rows.append(
            (name, sum(films[name].values()), len(counted), ", ".join(sha[:12] for sha, _ in counted))
        )
    most = max(len(each) for each in films.values())
    kinds = Counter(condition.name.split()[0] for condition in conditions)
    cpus = Counter(len(condition.cpus) for condition in conditions)
    return Result(
        name="determinism",
        question="does the same board make the same film, whatever it finds around it?",
        settings={
            "renders": len(conditions),
            "size": SIZE,
            "x264": " ".join(portable_options("libx264")) or "no option",
            "memory": "; ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())),
            "CPUs": "; ".join(f"{count} of {number}" for number, count in sorted(cpus.items())),
            "minutes": round(seconds / 60, 1),
        },
        tables=(Table("Films", ("board", "films", "different", "sha256"), tuple(rows)),),
        findings=(
            Finding(
                f"different films of a board, {len(conditions)} renders of {len(BOARDS)} boards",
                str(most),
                "1",
                "holds" if most == 1 else "missed",
            ),
        ),
        notes=(ABOUT, MEMORY),
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--renders", type=int, default=100)
    chosen = parser.parse_args()
    films: dict[str, Counter[str]] = {name: Counter() for name in BOARDS}
    conditions = []
    start = time.perf_counter()
    with workplace() as folder:
        filler = compile_filler(folder)
        boards = write_boards(folder / "boards", SIZE)
        for number in range(1, chosen.renders + 1):
            condition = varied(number, filler)
            progress(f"{number} of {chosen.renders}: {condition.name}")
            for name, sha in render(boards, folder / "render", condition).items():
                if films[name] and sha not in films[name]:
                    progress(f"another film of {name}: {sha}")
                films[name][sha] += 1
            shutil.rmtree(folder / "render")
            conditions.append(condition)
    finish(report(films, conditions, time.perf_counter() - start), write=chosen.write)


if __name__ == "__main__":
    main()
