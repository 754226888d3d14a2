"""Whatever a file holds, it is a board or an error with a cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from storyboard_schema import PARTS, SCHEMA, accepts

from svi_story.errors import InputError
from svi_story.fields import joined_surrogates
from svi_story.storyboard.source import BoardFile, load

GOOD = [path.read_bytes() for path in sorted((Path(__file__).parent / "boards").glob("good-*.yaml"))]
NAMES = sorted({name for part in PARTS for name in part.model_fields})
SIGNS = st.sampled_from(
    [*":-?,[]{}#&*!|>'\"%@`~\n\t .0123456789eEx\\aé猫", "\n  ", ": ", "- ", "\\u", "<<", "---"]
)

words = st.one_of(
    st.text(max_size=20),
    st.sampled_from(NAMES),
    st.sampled_from(["continue", "cut", "svi", "2.0", "2.0-pro", "fast", "crop", "480p", "832x480"]),
    st.sampled_from(["5s", "24000/1001", "anchor.png"]),
)
numbers = st.one_of(st.integers(-5, 100), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.one_of(words, numbers, st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def anchor(own_ground: Path) -> None:
    Path("anchor.png").write_bytes(b"")


def outcome(raw: bytes) -> BoardFile | InputError:
    """What becomes of a file; any exception but InputError fails the test."""
    path = Path("board.yaml")
    path.write_bytes(raw)
    try:
        return load(path)
    except InputError as error:
        refused = error
    assert refused.problems
    for problem in refused.problems:
        assert problem.file == "board.yaml"
        assert str(problem).isprintable()
        assert len(str(problem)) < 1000
    return refused


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    outcome(raw)


@settings(deadline=None)
@given(st.lists(SIGNS, max_size=60).map("".join))
def test_any_signs_of_yaml(text: str) -> None:
    outcome(text.encode())


@settings(deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_a_good_board_with_a_damaged_place(raw: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 12)))
    outcome(raw[:start] + data.draw(st.one_of(SIGNS.map(str.encode), st.binary(max_size=4))) + raw[end:])


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(NAMES), values, max_size=6),
    st.sampled_from(["", "clips", "engine", "cut", "lint"]),
)
@example({"transition": {"fade": 1, "<word>": 2}}, "clips")
@example({"<fade>": 1}, "")
@example({"let": {"\uaaf7": 0}}, "")
@example({"<<": {"prompt": "A"}}, "clips")
@example({"guidance": {"high": 10**300, "low": {}}}, "engine")
def test_any_value_in_any_field(fields: dict[str, Any], part: str) -> None:
    board: dict[str, Any] = {"version": 1, "reference": "anchor.png", "clips": [{"prompt": "A"}]}
    if part == "clips":
        board["clips"].append({"prompt": "B"} | fields)
    else:
        board |= {part: fields} if part else fields
    written = json.dumps(board)
    if isinstance(outcome(written.encode()), BoardFile):
        assert accepts(SCHEMA, json.loads(written)), "the schema must take what load takes"


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(NAMES), values, max_size=5),
    st.sampled_from(["audio", "title_card", "end_card", "voice", "sounds", "transition"]),
)
@example({"path": "anchor.png", "start": 0}, "sounds")
@example({"dip": 1, "<word>": 2}, "transition")
def test_any_value_two_levels_deep(fields: dict[str, Any], part: str) -> None:
    clip: dict[str, Any] = {"prompt": "B"}
    board = {"version": 1, "reference": "anchor.png", "clips": [{"prompt": "A"}, clip]}
    if part in ("audio", "title_card", "end_card"):
        board["cut"] = {part: fields}
    else:
        clip[part] = [fields, "anchor.png"] if part == "sounds" else fields
    written = json.dumps(board)
    if isinstance(outcome(written.encode()), BoardFile):
        assert accepts(SCHEMA, json.loads(written)), "the schema must take what load takes"


@settings(deadline=None)
@given(st.text())
def test_every_prompt_comes_through_as_it_was_written(prompt: str) -> None:
    board = {"version": 1, "reference": "anchor.png", "clips": [{"prompt": prompt}]}
    read = outcome(json.dumps(board).encode())
    if isinstance(read, BoardFile):
        assert read.story.clips[0].prompt == joined_surrogates(prompt)


@settings(deadline=None)
@given(values)
def test_any_value_alone(value: Any) -> None:
    outcome(json.dumps(value).encode())
