"""The JSON Schema: it is sound, says what every field is for, and takes every board that `load` takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from storyboard_schema import PARTS, SCHEMA, SILENT, accepts

from svi_story.storyboard.cut_schema import CardSettings, CutSettings, MusicSettings, SoundSettings
from svi_story.storyboard.files import decode
from svi_story.storyboard.schema import (
    MODELINE,
    NOT_YET,
    SCHEMA_FILE,
    Clip,
    EngineSettings,
    LintSettings,
    Resolution,
    Storyboard,
    resolved_ids,
)
from svi_story.storyboard.source import load
from svi_story.storyboard.yaml12 import parse

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SHIPPED = [
    *sorted((HERE / "boards").glob("good-*.yaml")),
    *sorted((HERE.parent / "storyboards").rglob("*.yaml")),
    *sorted((HERE.parent / "templates").rglob("*.yaml")),
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_schema_takes_every_good_board(path: Path) -> None:
    board = parse(decode(path.read_bytes(), path.name), path.name).data
    assert accepts(SCHEMA, board)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"colour": "red"},
        {"clips": []},
        {"clips": [{"prompt": " "}]},
        {"clips": [{"prompt": "A", "takes": 100}]},
        {"clips": [{"prompt": "A", "caption": " "}]},
        {"clips": [{"prompt": "A", "caption": "B" * 301}]},
        {"clips": [{"prompt": "A", "voice": 1}]},
        {"clips": [{"prompt": "A", "sounds": "a.wav"}]},
        {"clips": [{"prompt": "A", "sounds": [{"volume": 1}]}]},
        {"clips": [{"prompt": "A", "sounds": [{"path": "a.wav", "start": -1}]}]},
        {"clips": [{"prompt": "A", "duration": "soon"}]},
        {"clips": [{"prompt": "A", "transition": "wipe"}]},
        {"fps": 0},
        {"fps": "fast"},
        {"engine": {"steps": 0}},
        {"engine": {"guidance": {"high": 1}}},
        {"resolution": "big"},
        {"cut": {"crf": 64}},
        {"cut": {"preset": "best"}},
        {"cut": {"preset": 14}},
        {"cut": {"captions": True}},
        {"cut": {"audio": {"path": "a.wav", "duck": 2}}},
        {"cut": {"title_card": {"duration": 2}}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_load_refuses(change: dict[str, Any]) -> None:
    board = {"version": 1, "reference": "a.png", "clips": [{"prompt": "A"}]}
    assert accepts(SCHEMA, board)
    assert not accepts(SCHEMA, board | change)


def test_every_field_says_what_it_is_for() -> None:
    for part in PARTS:
        for name, field in part.model_fields.items():
            assert field.description, f"{part.__name__}.{name}"


def test_every_field_has_an_example_or_a_plain_default() -> None:
    for part in PARTS:
        for name, field in part.model_fields.items():
            value = field.examples[0] if field.examples else field.default
            assert json.dumps(value) != "null", f"{part.__name__}.{name}"


def test_examples_are_right_by_their_own_schema() -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            for example in node.get("examples", ()):
                assert accepts({key: value for key, value in node.items() if key not in SILENT}, example)
            if "default" in node:
                assert accepts(
                    {key: value for key, value in node.items() if key not in SILENT}, node["default"]
                )
            for value in node.values():
                walk(value)

    walk({key: value for key, value in SCHEMA.items() if key != "examples"})


def test_the_schema_knows_no_null_and_names_its_draft() -> None:
    assert "null" not in json.dumps(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["required"] == ["version", "reference", "clips"]


def test_the_schema_in_docs_is_this_one() -> None:
    written = (DOCS / SCHEMA_FILE).read_text("utf-8")
    assert written == json.dumps(SCHEMA, indent=2, ensure_ascii=False) + "\n", (
        "svi-story schema > docs/" + SCHEMA_FILE
    )


def test_the_modeline_names_the_schema() -> None:
    assert f"# yaml-language-server: $schema={SCHEMA_FILE}" == MODELINE


def test_the_reference_page_tells_of_every_field() -> None:
    page = (DOCS / "storyboard.md").read_text("utf-8")
    for part in PARTS:
        for name in part.model_fields:
            assert re.search(rf"`(\w+\.)?{name}`", page), f"{part.__name__}.{name}"


def test_the_reference_page_tells_the_defaults() -> None:
    page = (DOCS / "storyboard.md").read_text("utf-8")
    sections: dict[type[BaseModel], str] = {
        EngineSettings: "## `engine`", CutSettings: "## `cut`", SoundSettings: "### Sound",
        MusicSettings: "### Music", CardSettings: "### Captions and cards", LintSettings: "## `lint`",
    }  # fmt: skip
    for part, heading in sections.items():
        section = page.partition(f"{heading}\n")[2]
        for name, field in part.model_fields.items():
            row = next(line for line in section.splitlines() if line.startswith(f"| `{name}`"))
            told = row.split(" | ")[-1].removesuffix(" |")
            if field.is_required():
                assert told == "required", name
            elif field.default is None:
                assert told not in ("", "`None`", "required"), name
            else:
                value = str(field.default).lower() if isinstance(field.default, bool) else field.default
                assert told.startswith(f"`{value}`"), name


def test_models_are_frozen_and_take_no_other_field() -> None:
    clip = Clip(prompt="A cat sits.")
    with pytest.raises(ValidationError):
        clip.prompt = "B"  # type: ignore[misc]  # that it fails is the point
    with pytest.raises(ValidationError):
        Clip.model_validate({"prompt": "A", "colour": "red"})
    for part in (*PARTS, Resolution):
        assert issubclass(part, BaseModel)
        assert part.model_config.get("frozen") is True


def test_a_storyboard_made_in_python_obeys_the_same_rules() -> None:
    board = {
        "version": 1,
        "reference": "a.png",
        "clips": [{"prompt": "A", "id": "x"}, {"prompt": "B", "id": "x"}],
    }
    with pytest.raises(ValidationError, match="is the id of"):
        Storyboard.model_validate(board)


def test_default_ids_count_from_one_and_never_change_their_width() -> None:
    clips = [Clip(prompt="A")] * 100
    ids = resolved_ids(clips)
    assert (ids[0], ids[8], ids[98], ids[99]) == ("clip-01", "clip-09", "clip-99", "clip-100")
    assert resolved_ids(clips[:5]) == ids[:5]
    assert resolved_ids([Clip(prompt="A", id="cat"), Clip(prompt="B")]) == ("cat", "clip-02")


def test_the_boards_on_the_reference_page_are_right(own_ground: Path) -> None:
    page = (DOCS / "storyboard.md").read_text("utf-8")
    (own_ground / "images").mkdir()
    for name in ("cat", "street"):
        (own_ground / f"images/{name}.jpg").touch()
    for name in ("music/rain.mp3", "sounds/rain.wav", "voices/01.wav"):
        (own_ground / name).parent.mkdir()
        (own_ground / name).touch()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 8
    for block in blocks:
        head = "" if "version:" in block else "version: 1\nreference: images/cat.jpg\n"
        (own_ground / "board.yaml").write_text(head + block, "utf-8")
        assert load(Path("board.yaml")).ids


def test_the_reference_page_names_all_that_is_not_there_yet() -> None:
    page = (DOCS / "storyboard.md").read_text("utf-8").partition("## Not yet")[2]
    for name in NOT_YET:
        assert f"`{name.rpartition('.')[2]}`" in page, name
