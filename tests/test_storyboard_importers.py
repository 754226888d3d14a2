"""Upstream's prompt files become boards; nothing in them is run, and nothing is lost on the way."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from svi_story.errors import InputError
from svi_story.events import Event, Warned
from svi_story.fields import blank, text_problem
from svi_story.storyboard.importers import ImportedClip, read_clips, title_for
from svi_story.storyboard.schema import MODELINE
from svi_story.storyboard.source import load
from svi_story.storyboard.templates import board_from_clips, write_board

if TYPE_CHECKING:
    from collections.abc import Callable


def prompt_file(text: str | bytes) -> Path:
    path = Path("prompt.txt")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def prompts_of(path: Path, report: Callable[[Event], None] = lambda _: None) -> tuple[str, ...]:
    return tuple(clip.prompt for clip in read_clips(path, report))


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ('prompts = ["one"]', ("one",)),
        ('["one", "two"]', ("one", "two")),
        ("prompts = ['one',\n           'two',\n]\n", ("one", "two")),
        ('prompts = ("one", "two")', ("one", "two")),
        (
            '# head\n"""About."""\n\nprompts: list[str] = [  # a list\n  "one",  # first\n\n  "two"\n]',
            ("one", "two"),
        ),
        ('["""one\nline""", r"C:\\new", u"\\u732b"]', ("one\nline", "C:\\new", "猫")),
        ('["one " "and only"]', ("one and only",)),
        ('["""one\n""" "and only"]', ("one\nand only",)),
        ('[("one "\n  "and only"),\n "two"]', ("one and only", "two")),
        ('["a, b", "c] d", \'e "f"\', "g # h"]', ("a, b", "c] d", 'e "f"', "g # h")),
        ('\ufeffprompts = ["one"]\r\n', ("one",)),
        ('["\\ud83d\\udc31"]', ("🐱",)),
        ('["50\\% grey"]', ("50\\% grey",)),
        ('  prompts = ["one"]', ("one",)),
    ],
)
def test_lists_of_texts_are_read(text: str, prompts: tuple[str, ...]) -> None:
    def refuse(event: Event) -> None:
        pytest.fail(str(event))

    assert prompts_of(prompt_file(text), refuse) == prompts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ': has no prompts; write one prompt per line, or prompts = ["...", "..."]'),
        ("# nothing\n", ': has no prompts; write one prompt per line, or prompts = ["...", "..."]'),
        ("x = 1\nprompts: []", ":1: is not a list of prompts, and code is never executed; write prompts"),
        (
            "A cat\n__import__('os')",
            ":2: is not a list of prompts, and code is never executed; write prompts",
        ),
        ("1. A cat\n2.  \n", ':2: prompt "" is blank; describe what is seen'),
        ("a " * 6000, ":1: a prompt has 11999 characters, more than 10000; write one prompt per line"),
        ("a\n" * 10_001, ": has more than 10,000 prompts; split it"),
        ('{"prompts": ["a",]}', ":1: is not JSON (Expecting value); correct it"),
        ('{"prompts": "a"}', ': has no list of prompts; write {"prompts": ["...", "..."]}'),
        ('{"prompts": []}', ": the list of prompts is empty; write one prompt per line"),
        ('{"prompts": ["a", 2, {"x": 1}]}', ": prompts[1]: 2 is not a prompt; write"),
        ('[{"prompt": "a"}, {"prompt": " "}]', ': [1]: prompt " " is blank; describe what is seen'),
        ('{"prompt": "a"}\n{"prompt": \n', ": is not JSON (Extra data); correct it"),
        ("[“one, 'two']", ":1: a quote that is never closed; write prompts"),
        ("prompts = []", ':1: the list of prompts is empty; write prompts = ["...", "..."]'),
        ("\nprompts = list('a')", ':2: `list` is not a list; write prompts = ["...", "..."]'),
        ('["one"]]\n\n', ":1: `]` after the list; remove it"),
        ("prompts =", ':1: `prompts` is not a list; write prompts = ["...", "..."]'),
        ("prompts = 'one'", ':1: `\'one\'` is not a list; write prompts = ["...", "..."]'),
        ('["one",\n 2]', ':2: `2` is not text in quotes; write prompts = ["...", "..."]'),
        ('["one",,]', ':1: `,` is not text in quotes; write prompts = ["...", "..."]'),
        ('["one", ["two"]]', ':1: `[` is not text in quotes; write prompts = ["...", "..."]'),
        ('["one", ("two", "three")]', ":1: a list inside the list; write every prompt as one text"),
        ('["one" + "two"]', ":1: `+` in place of a comma or the end of the list; write prompts = ["),
        ('["one"] * 3', ":1: `*` after the list; remove it"),
        ('["one"]\n["two"]', ":2: a second list of prompts, after the one on line 1; keep one"),
        (
            '["one"]\nprompts.append("two")',
            ":2: is not a list of prompts, and code is never executed; write pro",
        ),
        (
            'import os\nprompts = ["one"]',
            ":1: is not a list of prompts, and code is never executed; write pro",
        ),
        ('prompts += ["one"]', ":1: is not a list of prompts, and code is never executed; write prompts"),
        ('[f"a {b}"]', ":1: f before a quote makes it more than a plain text; remove the f"),
        ('["one",\nb"two"]', ":2: b before a quote makes it more than a plain text; remove the b"),
        ('["one', ":1: a quote that is never closed; write prompts"),
        ('["""one', ":1: a quote that is never closed; write prompts"),
        ('["one",', ":1: the list that starts here is never closed; write prompts"),
        ('["\\x4"]', ":1: an escape with a backslash that Python does not have; write \\\\ for a backslash"),
        (
            '["\\N{no such}"]',
            ":1: an escape with a backslash that Python does not have; write \\\\ for a back",
        ),
        (
            '["one",\n " ",\n ""]',
            ':2: prompt " " is blank; describe what is seen\nprompt.txt:3: prompt "" is',
        ),
        ('["a\\x1b[2J"]', ":1: contains a control character (U+001B); remove it"),
        ('["a\\ud83d"]', ":1: contains an unpaired surrogate (U+D83D); remove it"),
        (b'["a\x00"]', ":1: an invisible character (U+0000) is not allowed here; remove it"),
        (b'["one",\n "M\xe4dchen"]', ":2: is not UTF-8 (byte 0xE4); save it as UTF-8"),
        ('["one"]'.encode("utf-16"), ": is UTF-16 or UTF-32; save it as UTF-8"),
        (
            "if 1:\n    a = 1\n  b = 2\n",
            ":1: is not a list of prompts, and code is never executed; write prompts",
        ),
    ],
)
def test_anything_else_is_refused_by_line(text: str | bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        prompts_of(prompt_file(text))
    assert f"prompt.txt{message}" in str(caught.value) or message in str(caught.value)
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_missing_comma_and_other_settings_are_warned_of() -> None:
    heard: list[Event] = []
    text = 'fps = 15\nprompts = [\n "one"\n "two",\n "three",\n]\n'
    assert prompts_of(prompt_file(text), heard.append) == ("onetwo", "three")
    assert heard == [
        Warned("prompt.txt:1: only `prompts` is read; `fps` is ignored"),
        Warned("prompt.txt:3: no comma after this text, so the next text continues it"),
    ]


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("# scene one\nA cat sits.\n\nIt jumps over #1.\r\n", ("A cat sits.", "It jumps over #1.")),
        ("\ufeffA cat sits.", ("A cat sits.",)),
        ("1. A cat\n2) A dog\n(3) A cow\n4: A bee\n5.A fly\n", ("A cat", "A dog", "A cow", "A bee", "A fly")),
        ("- A cat\n* A dog\n+ A cow\n• A bee\n– A fly\n", ("A cat", "A dog", "A cow", "A bee", "A fly")),
        ("A **white cat** runs\n*A* ***dog*** on `grass`\n", ("A white cat runs", "A dog on grass")),
        ("It`s the cat`s 5 * 3 * 2 f**king (fog:1.2)", ("It`s the cat`s 5 * 3 * 2 f**king (fog:1.2)",)),
        ("- **Scene 1:** A cat\n- **Scene 2**: A dog\n", ("A cat", "A dog")),
        ("## Scenes\n\n- [ ] A cat\n\n- [x] A dog\n---\n", ("A cat", "A dog")),
        (
            "```text\n1. A cat\n   sits\n   - by day\n2. A dog\nruns\n```\n",
            ("A cat sits - by day", "A dog runs"),
        ),
        ("Scene 1: A cat\n**Shot 2:** A dog\n", ("A cat", "A dog")),
        ("１．猫\n２、犬\n三、牛\n", ("猫", "犬", "牛")),
        ("\"A cat, sits.\",\n“A dog.”\n'A cow',\n", ("A cat, sits.", "A dog.", "A cow")),
        ('1. **"A cat"**\n2. **A dog**\n3. «A cow»\n', ("A cat", "A dog", "A cow")),
        ('A "cat" and a "dog"\n', ('A "cat" and a "dog"',)),
        (
            "2:30 in the morning.\n-5 degrees.\n[Wide] A cat\n",
            ("2:30 in the morning.", "-5 degrees.", "[Wide] A cat"),
        ),
        ("[“one”, „two“, ‘It’s three’]", ("one", "two", "It’s three")),
        ("prompts = [\n  “one”,  # first\n  'two',\n]", ("one", "two")),
        ('["a\\/b", "c"]', ("a/b", "c")),
        ('{\n\t"prompts": ["one", "\\u732b"]\n}', ("one", "猫")),
        ('[{"prompt": "one"}, {"text": "two"}, "three"]', ("one", "two", "three")),
        ('{"prompt": "one"}\n\n{"prompt": "two"}\n', ("one", "two")),
    ],
)
def test_other_forms_of_lists_are_read(text: str, prompts: tuple[str, ...]) -> None:
    def refuse(event: Event) -> None:
        pytest.fail(str(event))

    assert prompts_of(prompt_file(text), refuse) == prompts


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("a.csv", 'id,prompt,seconds\n1,"A cat, white",5\n\n2,"A\ndog",3\n', ("A cat, white", "A\ndog")),
        ("a.CSV", "Prompt;Länge\r\nA cat, white;5\r\nA dog;3\r\n", ("A cat, white", "A dog")),
        ("a.tsv", "n\ttext\n1\tA cat, white\n2\tA dog\n", ("A cat, white", "A dog")),
        ("a.csv", "prompt\nA cat\nA dog\n", ("A cat", "A dog")),
        ("a.csv", "A cat\nA dog\n", ("A cat", "A dog")),
        (
            "a.md",
            "# Film\n| # | Prompt |\n|--:|:---|\n| 1 | A **cat** |\n| 2 | A dog |\n",
            ("A cat", "A dog"),
        ),
        ("a.md", "|steps|prompt\n|---|---|\n|| A \\| B\n|5|C||\n", ("A | B", "C")),
        ("a.txt", "A cat, white\nA dog, brown\n", ("A cat, white", "A dog, brown")),
    ],
)
def test_tables_are_read_by_their_column(name: str, text: str, prompts: tuple[str, ...]) -> None:
    Path(name).write_bytes(text.encode())
    assert prompts_of(Path(name)) == prompts


def test_what_a_table_lacks_is_reported() -> None:
    heard: list[Event] = []
    table = Path("a.csv")
    table.write_text("shot size,prompt,lens\nwide,A cat,35\n,,\nclose, ,50\n", "utf-8")
    with pytest.raises(InputError, match=r'^a.csv:4: prompt "" is blank; describe what is seen$'):
        prompts_of(table, heard.append)
    assert heard == [Warned('a.csv:1: not imported, and ignored: "shot size", "lens"')]
    table.write_text("wide,A cat\nclose,A dog\n", "utf-8")
    with pytest.raises(InputError, match=r'^a.csv:1: no column is called prompt; .*: "wide", "A cat"$'):
        prompts_of(table)
    table.write_text("prompt\n" + "a" * 200_000, "utf-8")
    with pytest.raises(InputError, match=r"^a.csv:2: is not CSV"):
        prompts_of(table)


@pytest.mark.parametrize(
    ("name", "text", "clips"),
    [
        (
            "a.csv",
            "prompt,Negative prompt,steps\nA cat,dogs,30\nA dog,,\nA cow\n",
            [
                {"prompt": "A cat", "negative_prompt": "dogs", "steps": 30},
                {"prompt": "A dog"},
                {"prompt": "A cow"},
            ],
        ),
        (
            "a.csv",
            'id;duration;prompt;caption;takes\n01;5s;A cat;12;3\n02;2.5;"A ""wet""\ndog";"Rain: a lot"\n',
            [
                {"id": "01", "prompt": "A cat", "duration": 5, "caption": "12", "takes": 3},
                {"id": "02", "prompt": 'A "wet"\ndog', "duration": 2.5, "caption": "Rain: a lot"},
            ],
        ),
        (
            "a.md",
            "| transition | prompt | seed |\n|--|--|--|\n| | A cat | 1 |\n| cut | A dog | |\n",
            [{"prompt": "A cat", "seed": 1}, {"prompt": "A dog", "transition": "cut"}],
        ),
        (
            "a.json",
            '{"clips": [{"text": "Cat", "seed": 7, "caption": {"text": "A", "to": 1}, "id": null}, "Dog"]}',
            [{"prompt": "Cat", "seed": 7}, {"prompt": "Dog", "caption": None}],
        ),
    ],
)
def test_tables_and_json_have_other_fields_of_clips(
    name: str, text: str, clips: list[dict[str, Any]]
) -> None:
    def refuse(event: Event) -> None:
        pytest.fail(str(event))

    Path(name).write_bytes(text.encode())
    found = read_clips(Path(name), refuse)
    Path("anchor.png").touch()
    Path("board.yaml").write_text(board_from_clips(found, "anchor.png", "t"), "utf-8", newline="")
    story = load(Path("board.yaml")).story
    assert len(story.clips) == len(clips)
    for clip, expected in zip(story.clips, clips, strict=True):
        assert {field: getattr(clip, field) for field in expected} == expected
        assert clip.model_fields_set <= {*expected, "caption"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,steps\nA cat,many\n", 'a.csv:2: steps: "many" is not a whole number;'),
        ("a.csv", "prompt,steps\nA cat,5\n,5\n", 'a.csv:3: prompt "" is blank'),
        ("a.csv", "prompt,id\nA cat,a\nA dog,a\n", 'a.csv:3: id: "a" is the id of clips[0] too'),
        ("a.csv", "prompt,transition\nA cat,cut\n", "a.csv:2: transition: the first clip has no"),
        ("a.csv", "steps,prompt\n5,A cat, white\n", "a.csv:2: has 3 cells, and the first line 2; put a"),
        ("a.md", "|prompt|\n|-|\n|A | B|\n", "a.md:3: has 2 cells, and the first line 1; put a"),
        ("a.csv", 'prompt,steps\nA,5\n"B,6\nC,7\n', "a.csv:3: is not CSV (unexpected end of data); close"),
        ("a.csv", 'prompt\n"She says "no" twice"\n', "a.csv:2: is not CSV"),
        ("a.json", '[{"prompt": "A", "steps": 0}]', "a.json: [0].steps: 0 is less than 1; use 1 or more"),
        ("a.json", '{"clips": [{"prompt": "A", "seed": [1]}]}', "a.json: clips[0].seed: a list is not"),
    ],
)  # fmt: skip
def test_fields_that_are_wrong_are_refused_at_their_place(name: str, text: str, message: str) -> None:
    Path(name).write_text(text, "utf-8")
    with pytest.raises(InputError) as caught:
        read_clips(Path(name))
    assert message in str(caught.value)


def test_what_is_left_out_is_warned_of() -> None:
    heard: list[Event] = []
    text = "Here are two prompts:\n\n1. A cat\n2. A dog\n\nShall I go on?\n"
    assert prompts_of(prompt_file(text), heard.append) == ("A cat", "A dog")
    assert prompts_of(prompt_file('{"fps": 15, "clips": [{"prompt": "A cow"}]}'), heard.append) == ("A cow",)
    assert heard == [
        Warned('prompt.txt:1: is not part of the list, and is ignored: "Here are two prompts:"'),
        Warned('prompt.txt:6: is not part of the list, and is ignored: "Shall I go on?"'),
        Warned('prompt.txt: not imported, and ignored: "fps"'),
    ]


def test_nothing_in_a_prompt_file_is_run() -> None:
    harm = "__import__('pathlib').Path('harm').touch()"
    for text in (f"prompts = [{harm}]", f"x = {harm}\nprompts = ['a']", f'[f"{{{harm}}}"]', f"{harm}"):
        with contextlib.suppress(InputError):
            prompts_of(prompt_file(text))
        assert not Path("harm").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_900_000,
        "(" * 1_900_000,
        "-" * 1_900_000,
        "[" + "+".join(["1"] * 900_000) + "]",
        "[" + '"a" ' * 450_000 + "]",
        "[" + '"a"\n' * 450_000 + "]",
        "a=1\n" * 450_000,
        '"' * 1_900_000,
        '["""' + "a\n" * 900_000,
        "a" + ".a" * 900_000,
        "?" * 1_900_000,
        "\\\n" * 900_000,
        "‘" * 1_900_000,
        "[" + "“" * 1_900_000,
        "{" + '"a":' * 450_000,
        "[" + '{"a":' * 300_000,
        "1. a" * 400_000,
        "1. a\n" * 380_000,
    ],
    ids=lambda text: text[:6],
)
def test_hostile_prompt_files_are_refused_soon(text: str) -> None:
    heard: list[Event] = []
    start = time.process_time()
    with pytest.raises(InputError):
        prompts_of(prompt_file(text), heard.append)
    assert time.process_time() - start < 10
    assert len(heard) <= 20


def test_files_that_are_none_are_refused() -> None:
    for path, reason in (
        ("none.txt", "does not exist"),
        (".", "is a folder"),
        ("/dev/zero", "is not a regular"),
    ):
        with pytest.raises(InputError, match=reason):
            prompts_of(Path(path))
    with Path("huge.txt").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match="is larger than 2,000,000 bytes"):
        prompts_of(Path("huge.txt"))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    with contextlib.suppress(InputError):
        assert prompts_of(prompt_file(raw))


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["[", "]", "(", ")", '"a"', "'", '"', ",", "=", "prompts", "\n", "#", "f", "\\", "1"])
    )
)
def test_any_signs(signs: list[str]) -> None:
    with contextlib.suppress(InputError):
        assert prompts_of(prompt_file("".join(signs)))


fit_texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda text: not blank(text) and not text_problem(text)
)


@settings(deadline=None)
@given(st.lists(fit_texts, min_size=1, max_size=20), fit_texts, fit_texts)
@example(
    ["true", "12", "a: b", "a #b", "- a", "a:", "x\u2028y", "\ufeffa", "'", "~a", "1e3", "?", "a\n\nb \t"],
    "a",
    "b",
)
def test_every_prompt_comes_through_exactly(prompts: list[str], reference: str, title: str) -> None:
    name = "".join(c for c in reference if not text_problem(c, one_line=True))[:50].replace("/", "_")
    if name in ("", ".", "..") or len(name.encode()) > 200 or blank(name):
        name = "anchor.png"
    Path(name).write_bytes(b"")
    Path("board.yaml").write_text(
        board_from_clips(map(ImportedClip, prompts), name, title), "utf-8", newline=""
    )
    story = load(Path("board.yaml")).story
    assert [clip.prompt for clip in story.clips] == prompts
    assert story.reference == name
    assert story.title == (None if text_problem(title, one_line=True) else title)


def test_an_imported_board_is_pleasant_to_read() -> None:
    prompts = ["A cat sits by the window; rain falls.", "Close-up: it blinks.", "猫跳下来。"]
    assert board_from_clips(map(ImportedClip, prompts), "images/cat.jpg", "Rain").splitlines() == [
        MODELINE,
        "version: 1",
        "title: Rain",
        "reference: images/cat.jpg",
        "clips:",
        "  - prompt: A cat sits by the window; rain falls.",
        '  - prompt: "Close-up: it blinks."',
        "  - prompt: 猫跳下来。",
    ]


@pytest.mark.parametrize("reference", ["", "a\nb.png", "caf\udce9.png"])
def test_a_reference_that_no_board_can_name_is_refused(reference: str) -> None:
    with pytest.raises(InputError, match="the reference"):
        board_from_clips([ImportedClip("A")], reference, "t")


def test_a_board_is_written_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("boards/sea.yaml")
    write_board(path, "version: 1\n")
    assert path.read_text("utf-8") == "version: 1\n"
    with pytest.raises(InputError, match=r"boards/sea\.yaml: exists already"):
        write_board(path, "other")
    with pytest.raises(
        InputError, match=r"sea\.txt: is not a name for a board; end it in \.yaml, as sea\.yaml"
    ):
        write_board(Path("boards/sea.txt"), "other")
    with pytest.raises(InputError, match="cannot be written"):
        write_board(path / "below.yaml", "other")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        write_board(Path("boards/b.yaml"), "other")
    assert [found.name for found in Path("boards").iterdir()] == ["sea.yaml"]


@pytest.mark.parametrize("name", ["sea", ".", "boards/.yaml", "sea.yaml.txt", "sea.json"])
def test_a_board_is_named_as_one(name: str) -> None:
    with pytest.raises(InputError, match=r"is not a name for a board; end it in \.yaml, as \S+\.yaml"):
        write_board(Path(name), "version: 1\n")


@pytest.mark.parametrize(
    ("prompts", "title"),
    [
        ("the-sea/prompt.txt", "the-sea"),
        ("the-sea/Prompts.TXT", "the-sea"),
        ("the-sea/../the-sea/prompt.txt", "the-sea"),
        ("the-sea/storm.txt", "storm"),
        ("/prompt.txt", "prompt"),
    ],
)
def test_a_film_of_unnamed_prompts_is_called_as_their_folder(prompts: str, title: str) -> None:
    Path("the-sea").mkdir()
    assert title_for(Path(prompts)) == title
