"""What a user installs: the wheel holds templates and fonts, and the core works without the extras."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = (
    "diffusers flash_attn ftfy hatchling huggingface_hub hypothesis mypy playwright pytest ray "
    "torch torchvision transformers"
)
"""Modules that the optional extras install."""
BOARD = """\
version: 1
reference: images/reference.jpg
resolution: 128x80
clips:
  - {prompt: A paper boat is drifting over a still pond., frames: 9}
  - {prompt: The boat is turning slowly., frames: 9, transition: {fade: 0.2s}, caption: Evening}
"""


def test_the_core_works_from_a_wheel_without_the_extras(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = next((tmp_path / "dist").glob("svi_story-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
        f"sys.modules.update(dict.fromkeys({EXTRAS!r}.split())); from svi_story.cli import main; main()"
    )

    def run(*words: str, code: int = 0) -> str:
        ended = subprocess.run(
            [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ended.returncode == code, ended.stderr
        return ended.stdout

    assert run("--version").startswith("svi-story ")
    assert run("new", "my-film").strip() == "my-film/my-film.yaml"
    assert "valid" in run("validate", "my-film")
    (tmp_path / "my-film/my-film.yaml").write_text(BOARD)
    for command in ("plan", "render", "status", "preview", "review", "export --to otio"):
        assert run(*command.split(), "my-film", "--engine", "animatic"), command
    assert run("cache", "ls")
    assert "torch" in run("doctor", code=1)
    fonts = list((tmp_path / "site/svi_story/media/fonts").iterdir())
    assert any(font.suffix == ".ttf" for font in fonts)
    assert any(font.suffix == ".txt" for font in fonts)
