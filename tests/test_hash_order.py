"""What is said and shown does not depend on the order of sets, which Python shuffles for every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAM = """
import sys
from svi_story.cli.app import app
for words in ("validate good wrong", "plan good --json", "plan good --engine animatic --why",
              "status good --json", "models list --json", "models check",
              "export good/b.yaml --to srt --as good.srt"):
    try:
        app(words.split())
    except SystemExit as ended:
        print(words, ended.code, flush=True)
"""


def test_the_same_is_said_under_every_hash_seed(tmp_path: Path, write_board: Callable[..., Path]) -> None:
    picture = "../anchor.png"
    for name in ("a", "b", "c"):
        clips = [{"prompt": f"{name} {n} is running.", "caption": f"{name}{n}"} for n in range(3)]
        loras = [{"path": f"{name}-{n}.safetensors", "high": 1.0} for n in range(4)]
        engine = {"max_frames": 13, "loras": loras}
        write_board(f"good/{name}.yaml", reference=picture, clips=clips, engine=engine)
        wrong = {f"{name}{n}x": n for n in range(5)}
        write_board(f"wrong/{name}.yaml", reference=picture, clips=[{"prompt": "x", **wrong}], **wrong)
    said = set()
    for seed in range(3):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": str(seed),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=True,
        )
        assert b"Traceback" not in done.stderr
        said.add((done.stdout, done.stderr))
    assert len(said) == 1, said
    (told,) = said
    assert told[0].count(b"\n") > 10
    assert told[1].count(b"\n") > 30
