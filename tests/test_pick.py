"""`pick` writes into the author's YAML: a line of it changes, and no other byte, or it says what to write."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svi_story.errors import InputError, RenderError
from svi_story.portable import copy_owner
from svi_story.storyboard import files
from svi_story.storyboard.edit import pick_take
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.storyboard.edit import Edit

    Run = Callable[..., Ended]
    Write = Callable[..., Path]

HEAD = "version: 1\nreference: anchor.png\n"
FORMS = """
== plain
clips:
  - prompt: A
  - id: b
    takes: 3
    prompt: B
  - prompt: C
== picked
clips:
  - prompt: A
  - id: b
    takes: 3
    pick: 1
    prompt: B
== pick with a comment
clips:
  - prompt: A
  - pick: 1 # the first→#1
    takes: 3
    prompt: B
== comments
clips: # all
  # a
  - prompt: A # a

  - takes: 3 # b
    # c
    prompt: B # d
    # e
== tabs in comments
clips:
  - prompt: A #→a→
  - prompt: B #→b
    takes: 3 #→c→
#→e
== not indented
clips:
- prompt: A
- takes: 3
  prompt: B
- prompt: C
== far indented
clips:
        -   prompt: A
        -   takes: 3
            prompt: B
== a dash alone
clips:
  -
    prompt: A
  -

    takes: 3
    prompt: B
== braces
clips:
  - prompt: A
  - {takes: 3, prompt: B}
== braces with pick
clips:
  - prompt: A
  - {takes: 3, pick: 1, prompt: B} # {pick: 1}
== braces within brackets
clips: [{prompt: A}, {prompt: B, takes: 3}, {prompt: C}]
== braces on lines
clips: [
  {prompt: A}, {
    takes: 3, # three
    prompt: B
  }]
== braces in one line
clips:
  - prompt: A
  - { prompt : B }
== braces, pick alone
clips:
  - prompt: A
  - {pick: 1, prompt: B}
== quoted names
clips:
  - prompt: A
  - "takes": 3
    'prompt': B
== quoted names, picked
clips:
  - prompt: A
  - 'pick': 1
    "takes": 3
    'prompt': B
== escaped name
clips:
  - prompt: A
  - prompt: B
    takes: 3
    "pi\\x63k": 1
== JSON
"clips": [{"prompt": "A"}, {"prompt": "B", "takes":3}]
== JSON on lines
"clips": [
 {"prompt": "A"},
 {
  "prompt":"B"
 }
]
== text in a block
clips:
  - prompt: A
  - takes: 3
    prompt: |
      B
      pick: 1
== text in a kept block
clips:
  - prompt: A
  - prompt: |+
      B

    takes: 3


  - prompt: C
== folded text
clips:
  - prompt: A
  - prompt: >-
      B

      takes: 1
    takes: 3
  - prompt: C
== text on lines
clips:
  - prompt: A
  - prompt: B
      and
      more
    takes: 3
== quoted text on lines
clips:
  - prompt: A
  - prompt: 'B
      takes: 1'
    takes: 3
== value on the next line
clips:
  - prompt: A
  - takes: 3
    pick:
      # one
      1
    prompt: B
== mappings inside
clips:
  - prompt: A
  - caption:
      text: c # c
      # d
    takes: 3
    prompt: B
== mapping last
clips:
  - prompt: A
  - prompt: B
    takes: 3
    transition:
      fade: 1s
# end
== anchored number
clips:
  - prompt: A
    takes: &n 3
  - prompt: B
    takes: *n
== anchored pick
clips:
  - prompt: A
  - takes: 3
    prompt: B
    pick: &p 1
== pick is an alias
clips:
  - prompt: A
    steps: &n 1
  - prompt: B
    takes: 3
    pick: *n
== anchored clip
clips:
  - prompt: A
  - &b
    prompt: B
    takes: 3
== alias of a text
clips:
  - prompt: &t A
  - prompt: *t
    takes: 3
== anchor set twice
clips:
  - prompt: &t A
    caption: *t
  - prompt: &t B
    caption: *t
    takes: 3
== names with ?
clips:
  - prompt: A
  - ? prompt
    : B
    ? takes
    : 3
== number with a sign
clips:
  - prompt: A
  - prompt: B
    takes: 0x3
    pick: +1
== spaces at ends
clips:···
  - prompt: A··
  - takes: 3···
    prompt: B··
··
== other scripts
clips:
  - prompt: 猫🐈が
  - prompt: 'é👩👩👧 '
    takes: 3 # 取
== many fields
clips:
  - prompt: A
  - prompt: B
    seed: 7
    takes: 3
    steps: 5
    sounds: []
fps: 16
"""
"""Ways to write a board whose second clip has three takes; → is a tab, · a space at the end of a line."""
JSON = '{"version": 1, "reference": "anchor.png",\n'
WRAPS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text.replace("\n", "\r\n").replace("\r\n", "\n", 1),
    lambda text: "\ufeff" + text.replace("\n", "\r"),
    lambda text: text.rstrip("\n"),
    lambda text: f"%YAML 1.2\n# first\n---\n{text}...\n# last",
)
BOARDS = dict(form.split("\n", 1) for form in f"\n{FORMS}".split("\n== ")[1:])


def lines_of(raw: bytes) -> list[bytes]:
    return re.split(rb"\r\n|\r|\n", raw)


def changed_lines(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """How many lines became how many, at every place that differs; without their breaks."""
    matcher = SequenceMatcher(None, lines_of(before), lines_of(after), autojunk=False)
    return [(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal"]


def check_bytes(before: bytes, after: bytes) -> None:
    """Nothing but numbers was replaced, and nothing but fields was added, at one or two places."""
    removed, added = b"", b""
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        removed += before[i1:i2] if tag != "equal" else b""
        added += after[j1:j2] if tag != "equal" else b""
    breaks, more = (Counter(re.findall(rb"\r\n|\r|\n", raw)) for raw in (before, after))
    assert set(more - breaks) <= {kind for kind, _ in breaks.most_common(1)}
    assert re.fullmatch(rb"[\w*+&]{0,6}", removed), removed
    assert re.fullmatch(rb"""[\s\w"':,]{1,200}""", added), added


@pytest.mark.parametrize("form", BOARDS)
def test_a_hundred_boards_change_in_a_line(form: str) -> None:
    path = Path("board.yaml")
    Path("anchor.png").touch()
    text = BOARDS[form].replace("·", " ").replace("→", "\t") + "\n"
    for wrapped in WRAPS:
        before = wrapped(f"{JSON}{text}}}\n" if form.startswith("JSON") else HEAD + text).encode()
        path.write_bytes(before)
        board = load(path)
        edit = pick_take(board, 1, 2)
        assert edit is not None
        assert path.read_bytes() == before, "only `write` writes"
        edit.write()
        after = path.read_bytes()
        assert changed_lines(before, after) in ([(0, 1)], [(1, 1)])
        check_bytes(before, after)
        found, clips = load(path).story, [*board.story.clips]
        clips[1] = clips[1].model_copy(update={"pick": 2, "takes": max(2, clips[1].takes)})
        assert found == board.story.model_copy(update={"clips": tuple(clips)})
        assert pick_take(load(path), 1, 2) is None
        again = pick_take(load(path), 1, 1)
        assert again is not None
        assert changed_lines(after, again.after) == [(1, 1)], "the number is replaced"


TEXTS = st.text("ab:#-{}[]'\"\\&*|>,?!%@ \t\n\u00e9\u732b", min_size=1, max_size=12)
CLIPS = st.fixed_dictionaries(
    {"prompt": TEXTS.map(lambda text: f"x{text}")},
    optional={
        "takes": st.integers(1, 9),
        "caption": TEXTS.map(lambda text: {"text": f"x{text}", "to": "1s"}),
        "steps": st.integers(1, 99),
        "negative_prompt": TEXTS,
        "sounds": st.just([]),
        "guidance": st.just({"high": 3.0, "low": 2.0}),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    clips=st.lists(CLIPS, min_size=1, max_size=4),
    how=st.fixed_dictionaries(
        {
            "default_flow_style": st.sampled_from([True, False, None]),
            "default_style": st.sampled_from([None, '"', "'", "|", ">"]),
            "indent": st.integers(2, 9),
            "width": st.sampled_from([20, 1000]),
            "line_break": st.sampled_from(["\n", "\r\n", "\r"]),
            "explicit_start": st.booleans(),
            "explicit_end": st.booleans(),
            "sort_keys": st.booleans(),
            "allow_unicode": st.booleans(),
        }
    ),
    data=st.data(),
)
def test_any_board_that_is_written_by_a_library(
    picture: Path, clips: list[dict[str, Any]], how: dict[str, Any], data: st.DataObject
) -> None:
    board: dict[str, Any] = {"version": 1, "reference": picture.name, "clips": clips}
    text = yaml.safe_dump(board, **how)
    if how["default_style"]:
        text = re.sub(r"""(!!int|!!float) ["'](\S+)["']""", r"\2", text)
        text = re.sub(r"(!!int|!!float) [|>]-?(\r\n|\r|\n)\s+(\S+)", r"\3", text)
    path = picture.with_name("board.yaml")
    path.write_bytes(text.encode())
    before = load(path)
    clip, take = data.draw(st.integers(0, len(clips) - 1)), data.draw(st.integers(2, 12))
    edit = pick_take(before, clip, take)
    assert edit is not None
    missing = take > clips[clip].get("takes", 1)
    changed = changed_lines(edit.before, edit.after)
    assert sum(new for _, new in changed) <= 1 + missing + ("\n" not in text[-1:])
    check_bytes(edit.before, edit.after)
    expected = yaml.safe_load(text)
    expected["clips"][clip] |= {"pick": take, **({"takes": take} if missing else {})}
    assert yaml.safe_load(edit.after.decode()) == expected, "as another reader reads it"


@pytest.mark.parametrize(
    ("clips", "clip", "what"),
    [
        (
            "[&a {prompt: A, takes: 3}, *a]",
            1,
            'board.yaml:3: clips[1] (clip "clip-02"): is an alias (*a); write the clip out instead',
        ),
        (
            "[&a {prompt: A}, *a]",
            0,
            "`takes: 2` and `pick: 2` cannot be written here without changing another part of the board",
        ),
        (
            "[{prompt: A, takes: 3, pick: &n 1}, {prompt: A, takes: *n}]",
            0,
            'clips[0] (clip "clip-01"): `pick: 2` cannot be written here',
        ),
        ("[prompt: A, prompt: B]", 1, 'clips[1] (clip "clip-02"): `takes: 2` and `pick: 2` cannot be'),
    ],
)
def test_a_board_that_cannot_be_edited(picture: Path, clips: str, clip: int, what: str) -> None:
    path = picture.with_name("board.yaml")
    path.write_text(f"{HEAD}clips: {clips}\n")
    with pytest.raises(InputError) as caught:
        pick_take(load(Path("board.yaml")), clip, 2)
    assert what in str(caught.value)
    assert str(caught.value).endswith("; edit the board yourself")


def test_fields_that_are_missing_get_a_line_each(picture: Path) -> None:
    path = picture.with_name("board.yaml")
    path.write_text(f"{HEAD}clips:\n  - id: a\n    prompt: A # here\n\n  - prompt: |\n      B")
    edit = pick_take(load(path), 0, 2)
    assert edit is not None
    assert edit.after == edit.before.replace(b"# here\n", b"# here\n    takes: 2\n    pick: 2\n")
    assert edit.written == (f"{path}:6: takes: 2", f"{path}:7: pick: 2")
    last = pick_take(load(path), 1, 2)
    assert last is not None, "after the text, a line break would be a part of it"
    assert last.after == last.before.replace(b"- prompt: |", b"- takes: 2\n    pick: 2\n    prompt: |")


@pytest.fixture
def edit(write_board: Write) -> Edit:
    """An edit of `board.yaml` that is not written."""
    found = pick_take(load(write_board()), 1, 2)
    assert found is not None
    return found


def leftovers(edit: Edit) -> list[str]:
    return [path.name for path in edit.board.path.parent.iterdir() if path.name.startswith(".tmp")]


@pytest.mark.parametrize("method", ["write_bytes", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_failed_write_changes_nothing(
    edit: Edit, monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, fail)
        with pytest.raises((RenderError, KeyboardInterrupt)) as caught:
            edit.write()
    if isinstance(error, OSError):
        assert "board.yaml: cannot be written: No space left" in str(caught.value)
    assert edit.board.path.read_bytes() == edit.before
    assert not leftovers(edit)
    edit.write()
    assert edit.board.path.read_bytes() == edit.after


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_killed_while_it_writes(edit: Edit) -> None:
    child = os.fork()
    if not child:
        Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
        try:
            edit.write()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert edit.board.path.read_bytes() == edit.before
    assert leftovers(edit)
    edit.write()
    assert edit.board.path.read_bytes() == edit.after
    assert not leftovers(edit)


def test_what_another_program_wrote_stays(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = edit.board.path, edit.before + b"# mine\n"
    write_bytes = Path.write_bytes

    def write_both(file: Path, data: bytes) -> int:
        write_bytes(path, other)
        return write_bytes(file, data)

    monkeypatch.setattr(Path, "write_bytes", write_both)
    with pytest.raises(InputError, match="was changed by another program meanwhile"):
        edit.write()
    assert path.read_bytes() == other
    assert not leftovers(edit)
    with pytest.raises(InputError, match="was changed by another program meanwhile"):
        pick_take(edit.board, 1, 3)


def test_two_picks_at_once_are_never_both_taken_for_written(
    edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = pick_take(load(edit.board.path), 1 - edit.clip, 2)
    assert other is not None
    refused: list[InputError] = []

    def in_between(source: Path, target: Path) -> None:
        monkeypatch.setattr(files, "copy_owner", copy_owner)
        try:
            other.write()
        except InputError as error:
            refused.append(error)

    monkeypatch.setattr(files, "copy_owner", in_between)
    edit.write()
    assert ["was changed by another program" in str(error) for error in refused] == [True]
    assert edit.board.path.read_bytes() == edit.after
    with pytest.raises(InputError, match="was changed by another program meanwhile"):
        other.write()


def test_a_link_stays_and_so_do_the_permissions(edit: Edit) -> None:
    path = edit.board.path
    target = path.with_name("real") / "other.yml"
    target.parent.mkdir()
    path.rename(target)
    path.symlink_to(target)
    target.chmod(0o640)
    edit.write()
    assert path.is_symlink()
    assert target.read_bytes() == edit.after
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_read_only_board_stays(edit: Edit) -> None:
    edit.board.path.chmod(0o444)
    with pytest.raises(InputError, match="is read-only; make it writable for you"):
        edit.write()
    assert edit.board.path.read_bytes() == edit.before


def test_picking_from_the_command_line(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    clips = [
        {"id": name, "prompt": f"{name} is drifting.", "frames": 9, "takes": 3} for name in ("sea", "sky")
    ]
    board = write_board("boards/film.yaml", clips=clips, reference="../anchor.png")
    before = board.read_bytes()
    ended = svi_story("pick", "boards", "sky", 2, "--engine", "animatic")
    assert (ended.code, ended.out) == (0, "boards/film.yaml:15: pick: 2\n")
    assert "clip 2 (sky): take 2 is picked; 2 segments to render, and after the film 4 of other" in ended.err
    assert "next: svi-story render boards --engine animatic" in ended.err
    assert board.read_bytes() != before
    for name in ("sky", "2"):
        ended = svi_story("pick", board, name, 2)
        assert (ended.code, ended.out) == (0, "")
        assert "clip 2 (sky): take 2 is picked already; nothing was written" in ended.err
    ended = svi_story("pick", board, 1, 1)
    assert "clip 1 (sea): take 1 is picked already" in ended.err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["board.yaml", "roof", 2], "board.yaml: has no clip roof; name one by id or number"),
        (["board.yaml", "1-2", 2], "board.yaml: 1-2 is 2 clips; name one of them"),
        (["board.yaml", 1, 0], "Invalid value for 'TAKE'"),
        (["board.yaml", 1, 100], "Invalid value for 'TAKE'"),
        (["board.yaml", 1, "two"], "Invalid value for 'TAKE'"),
        (["board.yaml", 1, 1.5], "Invalid value for 'TAKE'"),
        (["board.yaml", 2], "Missing argument 'TAKE'"),
        (["no.yaml", 1, 2], "no.yaml: does not exist; check the path"),
        ([".", 1, 2], ".: holds 2 boards; name one of them"),
        (["anchor.png", 1, 2], "anchor.png:"),
        (["empty", 1, 2], "empty: holds no storyboard"),
        (["board.yaml", 3, 2], "seeds reach"),
    ],
)
def test_a_pick_that_means_nothing_changes_nothing(
    write_board: Write, svi_story: Run, tmp_path: Path, words: list[object], what: str
) -> None:
    clips: list[dict[str, Any]] = [{"prompt": "A"}, {"prompt": "B"}, {"prompt": "C", "seed": 2**63 - 1}]
    boards = [write_board(clips=clips), write_board("other.yaml")]
    (tmp_path / "empty").mkdir()
    before = [board.read_bytes() for board in boards]
    ended = svi_story("pick", *words)
    assert (ended.code, ended.out) == (2, "")
    assert what in ended.err
    assert [board.read_bytes() for board in boards] == before


def test_a_bundle_is_never_changed(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    board = write_board()
    assert svi_story("export", board, "--to", "bundle", "--engine", "animatic").code == 0
    bundle = tmp_path / "renders/board.zip"
    before = bundle.read_bytes()
    ended = svi_story("pick", bundle, 1, 2)
    assert ended.code == 2
    assert "a bundle is never changed; pick the take in the board that it was packed from" in ended.err
    assert bundle.read_bytes() == before
