"""Reading a board's file: what is no board, limits, line numbers, and speed."""

from __future__ import annotations

import hashlib
import os
import socket
import time
import unicodedata
from pathlib import Path

import pytest

from svi_story.errors import InputError
from svi_story.storyboard.source import load

HEAD = "version: 1\nreference: anchor.png\n"
CLIPS = "clips:\n  - prompt: A cat sits.\n"


@pytest.fixture(autouse=True)
def anchor(own_ground: Path) -> Path:
    """A file to refer to: `load` looks whether it is there, and no further."""
    path = own_ground / "anchor.png"
    path.write_bytes(b"no picture")
    return path


def board(text: str | bytes, name: str = "board.yaml") -> Path:
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        load(path)
    assert time.process_time() - start < 10
    return str(caught.value)


def test_a_board_knows_its_file_lines_ids_and_digest() -> None:
    text = (
        "# a comment\n\n"
        + HEAD
        + "clips:\n\n  - id: cat\n    prompt: |\n      A cat\n      sits.\n    frames: 81\n  - prompt: B\n"
    )
    path = board(text, "sub.yaml")
    read = load(path)
    assert (read.path, read.ids) == (path, ("cat", "clip-02"))
    assert read.digest == hashlib.sha256(text.encode()).hexdigest()
    assert read.lines.of(()) == 3
    assert read.lines.of(("clips",)) == 5
    assert read.lines.of(("clips", 0, "prompt")) == 8
    assert read.lines.of(("clips", 0, "frames")) == 11
    assert read.lines.of(("clips", 1)) == 12


def test_a_place_that_is_not_written_has_the_line_of_what_holds_it() -> None:
    read = load(board(HEAD + CLIPS))
    assert (
        str(read.problem(("clips", 0, "frames"), "is odd"))
        == 'board.yaml:4: clips[0].frames (clip "clip-01"): is odd'
    )
    assert str(read.problem(("clips", 3, "frames"), "is odd")) == "board.yaml:3: clips[3].frames: is odd"
    assert str(read.problem(("engine", "steps"), "is odd")) == "board.yaml:1: engine.steps: is odd"
    assert str(read.problem((), "is odd")) == "board.yaml:1: is odd"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_are_counted_whatever_ends_them(ending: str) -> None:
    text = "# Rain\n" + HEAD + "clips:\n  - prompt: |\n      A cat\n      sits.\n    frames: 80\n"
    assert refusal(board(text.replace("\n", ending))).startswith(
        'board.yaml:8: clips[0].frames (clip "clip-01"): '
    )


def test_messages_spell_the_path_as_the_user_did() -> None:
    Path("boards").mkdir()
    path = board(HEAD + CLIPS + "fps: 0\n", "boards/a.yaml")
    assert refusal(path).startswith("boards/a.yaml:2: reference: ")
    assert refusal(path.absolute()).startswith(f"{path.absolute()}:2: reference: ")


def test_references_are_relative_to_the_board_and_absolute_ones_stay() -> None:
    Path("boards").mkdir()
    load(board(HEAD.replace("anchor", "../anchor") + CLIPS, "boards/a.yaml"))
    load(board(HEAD.replace("anchor", f"{Path.cwd()}/anchor") + CLIPS, "boards/b.yaml"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.yaml", "does not exist"),
        ("anchor.png/board.yaml", "cannot be read (Not a directory)"),
        ("folder.yaml", "is a folder"),
        ("pipe.yaml", "is not a regular file"),
        ("socket.yaml", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        ("loop.yaml", "cannot be read (Too many levels of symbolic links)"),
        ("x" * 300 + ".yaml", "cannot be read (File name too long)"),
        ("nul\0.yaml", "cannot be read (its name contains NUL)"),
    ],
)
def test_what_is_no_file_is_refused_without_opening_it(name: str, reason: str) -> None:
    Path("folder.yaml").mkdir()
    os.mkfifo("pipe.yaml")
    Path("loop.yaml").symlink_to("loop.yaml")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket.yaml")
        assert f"{reason}; check the path" in refusal(Path(name))


def test_an_unreadable_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = board(HEAD + CLIPS)
    monkeypatch.setattr("os.open", denied)  # root may read everything, so the mode alone proves nothing
    assert refusal(path) == "board.yaml: cannot be read (Permission denied); check its permissions"


def test_a_reference_that_is_no_file_is_refused_without_opening_it() -> None:
    os.mkfifo("pipe.png")
    assert '"pipe.png" is not a regular file' in refusal(board(HEAD.replace("anchor", "pipe") + CLIPS))
    assert '"/dev/zero" is not a regular file' in refusal(
        board(HEAD.replace("anchor.png", "/dev/zero") + CLIPS)
    )


def test_a_file_over_two_megabytes_is_refused() -> None:
    whole = HEAD + CLIPS
    load(board(whole + "#" * (2_000_000 - len(whole))))
    assert "is larger than 2,000,000 bytes" in refusal(board(whole + "#" * (2_000_001 - len(whole))))
    with Path("endless.yaml").open("wb") as file:
        file.truncate(10**12)
    assert "is larger than 2,000,000 bytes" in refusal(Path("endless.yaml"))


@pytest.mark.parametrize("levels", [48, 49])
def test_nesting_ends_at_fifty(levels: int) -> None:
    text = HEAD + CLIPS + "title: " + "[" * levels + "]" * levels + "\n"
    assert ("nested more than 50 levels" in refusal(board(text))) == (levels > 49)


def test_nesting_of_fifty_one_is_refused() -> None:
    text = HEAD + CLIPS + "title: " + "[" * 50 + "x" + "]" * 50 + "\n"
    assert "is nested more than 50 levels deep" in refusal(board(text))


def test_aliases_may_stand_for_ten_thousand_values() -> None:
    def text(uses: int) -> str:
        clips = "  - &clip\n" + "".join(f"    k{n}: x\n" for n in range(99)) + "  - *clip\n" * uses
        return HEAD + "clips:\n" + clips

    assert "aliases stand for" not in refusal(board(text(100)))
    assert "aliases stand for more than 10,000 values" in refusal(board(text(101)))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_900_000,
        "[" + "a," * 900_000 + "]",
        "- " * 900_000,
        "{a: " * 400_000,
        "".join(f"k{n}: 1\n" for n in range(20_000)),
        "a: 1\n" * 20_000,
        "&a " * 600_000,
        "".join(" " * n + "-\n" for n in range(1900)),
        "clips: [" + "{}, " * 20_000 + "]",
        "clips: [" + ",".join(f"{{k{n}: 1}}" for n in range(10_000)) + "]",
        "? " + "a" * 1_900_000 + "\n: b",
        "a: " + "9" * 1_900_000,
        "a: 0x" + "f" * 1_900_000,
        "%YAML 1." + "9" * 10_000 + "\n--- a",
        '"' + "\\x41" * 490_000,
        "a" + "\u00a0" * 600_000,
        HEAD + 'clips: [{prompt: A, voice: "' + "a\\r" * 600_000 + '"}]',
        HEAD + "clips:\n  - prompt: A\n" + "      frames:33\n" * 90_000 + "  - frames: 80\n",
    ],
    ids=lambda text: text[:12].strip(),
)
def test_hostile_files_are_refused_soon(text: str) -> None:
    assert len(refusal(board(text))) < 200_000


def test_many_problems_are_counted_not_listed() -> None:
    text = HEAD + "clips:\n" + "  - {prompt: A, frames: 80}\n" * 2000
    lines = refusal(board(text)).splitlines()
    assert len(lines) == 501
    assert lines[-1] == 'board.yaml:504: clips[500].frames (clip "clip-501"): and 1500 more like these'


def test_problems_come_in_the_order_of_their_lines() -> None:
    text = "fps: 0\nversion: 1\nseed: 1\nseed: 2\nreference: none.png\n" + CLIPS + "    frames: 80\n"
    lines = [problem.split(":")[1] for problem in refusal(board(text)).splitlines()]
    assert lines == ["1", "4", "5", "8"]


def test_one_wrong_alias_is_wrong_wherever_it_stands() -> None:
    text = HEAD + "clips:\n  - &clip\n    prompt: A\n    frames: 80\n  - *clip\n"
    assert refusal(board(text)).splitlines() == [
        'board.yaml:6: clips[0].frames (clip "clip-01"): 80 is not 4k+1; use 81 (or 77)',
        'board.yaml:7: clips[1].frames (clip "clip-02"): 80 is not 4k+1; use 81 (or 77)',
    ]


def test_a_thousand_clips_are_read_at_once() -> None:
    prompt = "the camera glides over old stone; " * 5
    clip = f"    prompt: {prompt}\n    duration: 5s\n    seed: "
    path = board(HEAD + "clips:\n" + "".join(f"  - id: clip{n}\n{clip}{n}\n" for n in range(1000)))
    start = time.process_time()
    assert len(load(path).ids) == 1000
    assert time.process_time() - start < 2  # 0.2 s on the machine it was written on


# -- what YAML reads in another way than it looks


def in_two_clips(lines: str) -> Path:
    """A board of which these lines, from line 5 on, are a part."""
    return board(HEAD + CLIPS + lines)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("  - prompt: A cat #1\n      and jumps\n", '5: the text ends before "#1", because " #" starts'),
        ("  - prompt: A cat # 1\n      and: b\n", '5: the text ends before "# 1", because " #" starts'),
        ("  - {prompt: A cat #1, frames: 81}\n", '5: the text ends before "#1, frames: 81}", because'),
        (
            "  - prompt: #1 cat\n",
            '5: clips[1].prompt (clip "clip-02"): nothing is written here, because everything after " #"',
        ),
        ("    voice: a #1.wav\n", 'the text ends before "#1.wav", because " #" starts a comment'),
        (
            '    voice: "images\\ref.wav"\n',
            '5: clips[0].voice.path (clip "clip-01"): in double quotes \\r is an escape, not a',
        ),
        (
            '    voice: {path: "v\\new.wav"}\n',
            'clips[0].voice.path (clip "clip-01"): in double quotes \\n is an escape',
        ),
        ('    voice: "v\\_a.wav"\n', 'write "v/_a.wav", with forward slashes'),
        ('    voice: "v\\x.wav"\n', "5: an escape in double quotes needs 2 hex digits; write / in a path"),
        ('    voice: "v\\"\n', '\\" is a quote within the text: write / in a path'),
        (
            '    caption: "a \\a cat"\n',
            "remove it; in double quotes \\a is an escape, not a backslash; write",
        ),
        ("    \u00a0frames: 33\n", "5: a no-break space (U+00A0) in the indentation is not a space for YAML"),
        ("\u3000\u3000frames: 33\n  - prompt: B\n", "5: an ideographic space (U+3000) in the indentation"),
        ("    fps: 15\n\u200b    seed: 1\n", "6: a zero width space (U+200B) in the indentation"),
        ("  - prompt:\u00a0B\n", "5: a no-break space (U+00A0) after the colon is not a space for YAML"),
        ("    frames： 33\n", "5: a fullwidth colon (U+FF1A) is not a colon for YAML; write `frames: `"),
        (
            "  - prompt： A dog: B\n",
            "5: a fullwidth colon (U+FF1A) is not a colon for YAML; write `prompt: `",
        ),
        ("    ｆｒａｍｅｓ: 33\n", "5: the name contains a fullwidth latin small letter"),
        ("    frames\u200b: 33\n", "5: the name contains a zero width space (U+200B); write `frames: `"),
        ("  – prompt: B\n", "5: an en dash (U+2013) does not start an entry of a list; write `- prompt: `"),
        ("  • prompt: B\n", "5: a bullet (U+2022) does not start an entry of a list; write `- prompt: `"),
        ("    frames:33\n", "5: a space is missing after the colon; write `frames: `"),
        ("    seed: １２\n", "it contains a fullwidth digit one (U+FF11)"),
        ("    seed: 12\u00a0\n", "it contains a no-break space (U+00A0)"),
        ("  - prompt: *bold* cat\n", "5: text cannot start with * or &; put it in quotes"),
        ("  - prompt: - a cat\n", "5: text cannot start with a dash and a space; put it in quotes"),
        ("  - prompt: | a cat\n", "5: text after | or > starts on the next line; write it there"),
        ("  - prompt: [Wide] A cat\n", "5: text that starts with [ needs quotes"),
        ('  - prompt: "A cat" sits\n', "5: the text goes on after its closing quote; put all of it in"),
        ("  - prompt: 'It's raining'\n", "5: the text goes on after its closing quote; put all of it"),
        (
            "cut: {crf: 18， fade_in: 1s}\n",
            "5: a comma is missing, or the list that opens here is not closed",
        ),
    ],
)
def test_what_looks_like_yaml_and_is_none_is_explained(lines: str, message: str) -> None:
    found = refusal(in_two_clips(lines))
    assert message in found
    assert "board.yaml:5:" in found or "board.yaml:6:" in found


@pytest.mark.parametrize(
    ("lines", "doubt"),
    [
        ("  - prompt: &cat sits\n", "&cat is an anchor, and not a part of the text; put it in quotes"),
        ("  - prompt: She wears #1 on her back\n", 'the text ends before "#1 on her back"'),
        ("  - prompt: She wears\n      number #1\n", 'the text ends before "#1"'),
        ("    caption: Song #3\n", 'the text ends before "#3"'),
        (
            "  - prompt: A dog\n      frames:33\n",
            "line 6 is part of this text; a space is missing after the colon",
        ),
        (
            "  - prompt: A dog\n      frames：33\n",
            "line 6 is part of this text; a fullwidth colon (U+FF1A) is",
        ),
    ],
)
def test_a_valid_text_that_is_cut_off_is_doubted(lines: str, doubt: str) -> None:
    ((_, what),) = load(in_two_clips(lines)).unquoted
    assert what.startswith(doubt)


@pytest.mark.parametrize(
    "lines",
    [
        "  - prompt: A cat # the first take\n    seed: 5 #five\n",
        '  - prompt: "A cat #1"\n',
        "  - prompt: A cat's #\n",
        "  - prompt: 'She wears\n      frames:33 and #1'\n",
        "  - prompt: |\n      \u3000名前：猫\n      frames：33 #1\n",
        "  - prompt: 猫\n      \u3000座る\n",
        "    caption: 'a \\n b: c'\n",
    ],
)
def test_comments_and_quoted_texts_are_not_doubted(lines: str) -> None:
    assert load(in_two_clips(lines)).unquoted == ()


# -- file names


@pytest.fixture
def images(own_ground: Path) -> Path:
    folder = own_ground / "images"
    folder.mkdir()
    for name in ("ref.png", "My Cat.JPG", "café.png", unicodedata.normalize("NFD", "naïve.png"), "._new.png"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images\\ref.png", "ref.png"),
        (".\\images/ref.png", "ref.png"),
        ("images/../images//ref.png", "ref.png"),
        (unicodedata.normalize("NFD", "images/café.png"), "café.png"),
        ("images\\naïve.png", unicodedata.normalize("NFD", "naïve.png")),
    ],
)
def test_names_that_look_the_same_open_the_file(images: Path, name: str, file: str) -> None:
    read = load(board(HEAD.replace("anchor.png", f"'{name}'") + CLIPS))
    assert read.file(read.story.reference).samefile(images / file)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("images/REF.PNG", "images/ref.png"),
        ("IMAGES\\Ref.png", "images/ref.png"),
        ("ANCHOR.png", "anchor.png"),
        ("images/my cat.jpg", "images/My Cat.JPG"),
        ("images/my\u00a0cat.jpg", "images/My Cat.JPG"),
        ("images/ref.jpg", "images/ref.png"),
        ("images/reff.png ", "images/ref.png"),
        ("images/ref.png\u200b", "images/ref.png"),
        ("CAFÉ.png", ""),
        ("images/new.png", ""),
        ("images/ref2.png", ""),
    ],
)
def test_names_that_are_nearly_right_name_the_file(images: Path, name: str, near: str) -> None:
    found = refusal(board(HEAD.replace("anchor.png", f"'{name}'") + CLIPS))
    remedy = f'there is "{near}"' if near else "name an image, relative to the board's folder"
    assert found.endswith(f"does not exist; {remedy}")


def test_of_two_names_that_differ_in_case_none_is_chosen(images: Path) -> None:
    (images / "REF.png").touch()
    found = refusal(board(HEAD.replace("anchor.png", "images/Ref.png") + CLIPS))
    assert '; there is "images/' in found


def test_a_tilde_is_the_home_directory(own_ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(own_ground / "home"))
    (own_ground / "home").mkdir()
    (own_ground / "home/cat.png").touch()
    read = load(board(HEAD.replace("anchor.png", "~/cat.png") + CLIPS))
    assert read.file("~/cat.png") == own_ground / "home/cat.png"
    Path("~").mkdir()
    Path("~/cat.png").touch()
    assert read.file("~/cat.png").samefile("./~/cat.png")
    assert '"~nobody-has-this-name/a.png" does not exist' in refusal(
        board(HEAD.replace("anchor.png", "~nobody-has-this-name/a.png") + CLIPS)
    )


@pytest.mark.parametrize(
    ("name", "what"),
    [("https://example.org/a.png", "is a web address"), ("C:\\Users\\me\\a.png", "is a path on Windows")],
)
def test_names_of_files_elsewhere(name: str, what: str) -> None:
    assert what in refusal(board(HEAD.replace("anchor.png", f"'{name}'") + CLIPS))


def test_a_board_that_is_there_under_another_name() -> None:
    board(HEAD + CLIPS)
    assert refusal(Path("Board.yaml")) == 'Board.yaml: does not exist; there is "board.yaml"'


def test_many_wrong_names_in_a_large_folder_cost_little(images: Path) -> None:
    for number in range(1000):
        (images / f"frame {number:05}.png").touch()
    clips = "".join(f"  - prompt: A\n    voice: images/voice{number}.wav\n" for number in range(100))
    assert len(refusal(board(HEAD + "clips:\n" + clips)).splitlines()) == 100
