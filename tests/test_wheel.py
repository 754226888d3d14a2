"""What a user installs: the wheel holds templates and fonts, and works outside the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_new_and_render_work_from_a_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = next((tmp_path / "dist").glob("svi_story-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from svi_story.cli import main; main()"
    )

    def run(*words: str) -> str:
        command = [sys.executable, "-c", program, *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert run("--version").startswith("svi-story ")
    assert run("new", "my-film").strip() == "my-film/my-film.yaml"
    assert "valid" in run("validate", "my-film")
    fonts = list((tmp_path / "site/svi_story/media/fonts").iterdir())
    assert any(font.suffix == ".ttf" for font in fonts)
    assert any(font.suffix == ".txt" for font in fonts)
