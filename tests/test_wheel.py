"""What a user installs: the wheel holds templates and fonts, and the core works without the extras."""

from __future__ import annotations

import json
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
COMMANDS = """\
--version
new my-film
validate my-film
plan my-film/images.yaml --engine animatic
render my-film/images.yaml --engine animatic
status my-film/images.yaml --engine animatic
preview my-film/images.yaml
review my-film/images.yaml --engine animatic
export my-film/images.yaml --engine animatic --to otio
cache ls
doctor
"""
PROGRAM = """
import io, json, shutil, sys
from contextlib import redirect_stdout
site, extras, commands = sys.argv[1:]
sys.path.insert(0, site)
sys.modules.update(dict.fromkeys(extras.split()))
from svi_story.cli.app import app
answers = {}
for words in commands.splitlines():
    with redirect_stdout(io.StringIO()) as out:
        try:
            app(words.split())
        except SystemExit as ended:
            answers[words] = ended.code or 0, out.getvalue()
    if words.startswith("new"):
        shutil.copy("film.yaml", "my-film/images.yaml")
print(json.dumps(answers))
"""


def test_the_core_works_from_a_wheel_without_the_extras(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = next((tmp_path / "dist").glob("svi_story-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "film.yaml").write_text(BOARD)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "site"), EXTRAS, COMMANDS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    answers = json.loads(ended.stdout)
    assert answers["--version"][1].startswith("svi-story ")
    assert answers["new my-film"][1].strip() == "my-film/my-film.yaml"
    assert "valid" in answers["validate my-film"][1]
    code, found = answers.pop("doctor")
    assert (code, "torch" in found) == (1, True)
    assert [words for words, (code, out) in answers.items() if code or not out] == []
    fonts = list((tmp_path / "site/svi_story/media/fonts").iterdir())
    assert any(font.suffix == ".ttf" for font in fonts)
    assert any(font.suffix == ".txt" for font in fonts)
