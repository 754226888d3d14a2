"""The command line: what it says, where it says it, and with which code it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from svi_story.errors import RenderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")


@pytest.mark.parametrize("template", ["minimal", "story", "scenes"])
@pytest.mark.parametrize("name", ["my-film", "storyboards/one.yaml"])
def test_new_makes_a_board_that_can_be_planned(svi_story: Run, template: str, name: str) -> None:
    made = svi_story("new", name, "--template", template)
    assert made.code == 0, made.err
    board = made.out.strip()
    assert board.endswith(".yaml")
    assert svi_story("validate", board).code == 0
    again = svi_story("new", name)
    assert again.code == 2
    assert "exists" in again.err


def test_new_makes_a_project_that_is_complete(svi_story: Run, tmp_path: Path) -> None:
    ended = svi_story("new", "my film")
    assert ended.out == "my film/my film.yaml\n"
    assert ended.err.split("\n") == [
        "next: svi-story validate 'my film'",
        "      svi-story render 'my film' --engine animatic",
        "",
    ]
    assert sorted(path.relative_to("my film").as_posix() for path in Path("my film").rglob("*.*")) == [
        *("images/reference.jpg", "my film.yaml", "renders/.gitignore", "storyboard.schema.json"),
        "svi-story.toml",
    ]
    assert "$schema=storyboard.schema.json" in Path(ended.out.strip()).read_text("utf-8").splitlines()[0]
    settings = Path("my film/svi-story.toml")
    settings.write_text(settings.read_text("utf-8").replace("# engine", "engine"), "utf-8")
    assert svi_story("plan", "my film").out.count("engine animatic") == 1
    film = json.loads(svi_story("status", "my film", "--json").out)["boards"][0]["film"]
    assert film == "my film/renders/my film.mp4"


def test_shells_complete_commands_and_values() -> None:
    for words, count, expected in (("svi-story rev", 1, ["review"]), ("svi-story config --j", 2, ["--json"])):
        about = {"_SVI_STORY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        program = "import sys; sys.argv[0] = 'svi-story'; from svi_story.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **about}, capture_output=True, check=True
        )
        assert done.stdout.decode().split() == expected


def test_new_suggests_the_template_that_was_meant(svi_story: Run) -> None:
    ended = svi_story("new", "x", "--template", "scene")
    assert ended.code == 2
    assert "scenes" in ended.err
    assert svi_story("new", "--list").out.splitlines()[0].startswith("minimal: ")


def test_import_turns_prompts_into_a_board(svi_story: Run, picture: Path, tmp_path: Path) -> None:
    prompts = ["First, the sea.", 'Then "the" sky: 雨 🌧', "Last, the shore."]
    (tmp_path / "prompt.txt").write_text(f"prompts = {prompts!r}", "utf-8")
    ended = svi_story("import", "prompt.txt", "--reference", picture, "-o", "deep/sea.yaml", "--clips", 2)
    assert (ended.code, ended.out) == (0, "deep/sea.yaml\n"), ended.err
    plan = json.loads(svi_story("plan", "deep/sea.yaml", "--json").out)["boards"][0]
    assert [clip["prompt"] for clip in plan["clips"]] == prompts[:2]
    assert svi_story("import", "prompt.txt", "--reference", picture, "-o", "deep/sea.yaml").code == 2


def test_import_says_where_there_are_too_few_prompts(svi_story: Run, picture: Path) -> None:
    Path("two.txt").write_text("The sea.\nThe sky.\n", "utf-8")
    ended = svi_story("import", "two.txt", "-r", picture, "--clips", 9)
    assert (ended.code, ended.err) == (0, "warning: two.txt has 2 prompts, fewer than --clips 9\n")


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"\xff\xd8\xff\xe0JFIF", "but a picture; a board names it, as `reference: my file`"),
        (b"\0\0\0\x1cftypavif", "but a picture"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "but a sound; a board names it, as a clip's `voice`"),
        (b"ID3\x03\0", "but a sound"),
        (b"\0\0\0\x20ftypisom", "but a film; `svi-story review 'my file'` examines it"),
        (b"\x1aE\xdf\xa3", "but a film"),
        (b"PK\x03\x04\x14\0\6\0", "but an archive or an Office document"),
        (rb"{\rtf1\ansi A cat}", "but a document with fonts and pages; save it as plain text"),
        (b'\x40\0\0\0\0\0\0\0{"a":', "but a file of weights; name its folder with --models"),
    ],
)
def test_files_that_are_no_text_are_called_by_what_they_are(
    svi_story: Run, picture: Path, start: bytes, told: str
) -> None:
    file = Path("my file")
    for words, more in ((("render", file), 2_000_001), (("import", file, "-r", picture), 0)):
        file.write_bytes(start + bytes(more))
        ended = svi_story(*words)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert f"my file: is not a text file, {told}" in ended.err


def test_import_runs_nothing(svi_story: Run, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("prompts = [__import__('os').mkdir('owned')]")
    ended = svi_story("import", "prompt.txt", "--reference", picture)
    assert ended.code == 2
    assert "prompt.txt:1" in ended.err
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "prompt.yaml").exists()


def test_import_refuses_a_picture_that_is_none(svi_story: Run, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("['The sea.']")
    (tmp_path / "frame.jpg").write_bytes(b"no picture")
    ended = svi_story("import", "prompt.txt", "--reference", "frame.jpg")
    assert ended.code == 2
    assert "frame.jpg" in ended.err


def test_plan_gives_the_promised_json(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    board = write_board(style="35mm", fps="24000/1001")
    ended = svi_story("plan", board, *ANIMATIC, "--json")
    assert all(line.startswith("warning: ") for line in ended.err.splitlines())
    plan = json.loads(ended.out)["boards"][0]
    assert {name: plan[name] for name in ("board", "film", "frames", "fps", "width", "height")} == {
        "board": str(board),
        "film": "renders/board.mp4",
        "frames": 37,
        "fps": "24000/1001",
        "width": 64,
        "height": 64,
    }
    clip = plan["clips"][1]
    assert (clip["id"], clip["prompt"], clip["seed"]) == (
        "clip-02",
        "Clip 2 is drifting through the fog. 35mm",
        42,
    )
    segment = clip["segments"][0]
    assert {name: segment[name] for name in ("frames", "contributes", "seed", "state")} == {
        "frames": 13,
        "contributes": 12,
        "seed": 42,
        "state": "to-render",
    }
    assert segment["path"].startswith(str(tmp_path / "renders/.cache"))
    svi_story("render", board, *ANIMATIC)
    plan = json.loads(svi_story("plan", board, *ANIMATIC, "--json").out)["boards"][0]
    assert [part["state"] for each in plan["clips"] for part in each["segments"]] == ["cached"] * 3


def test_plan_for_people_shows_what_was_asked_and_what_is_made(write_board: Write, svi_story: Run) -> None:
    clips = [{"prompt": "The fog is drifting.", "duration": "1s"}]
    ended = svi_story("plan", write_board(clips=clips), *ANIMATIC, "--why")
    assert "64x64" in ended.out
    assert " 17 " in ended.out
    assert " 15 " in ended.out
    assert "no film has been made yet" in ended.out


def test_the_cache_of_the_environment_is_used(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SVI_STORY_CACHE", "elsewhere")
    svi_story("render", write_board(), *ANIMATIC)
    assert (tmp_path / "elsewhere/entries").is_dir()
    listed = json.loads(svi_story("cache", "ls", "--json").out)
    assert {item["kind"] for item in listed} == {"entry", "piece"}
    assert all(item["in_use"] for item in listed)
    assert "Clip 2 is drifting" in svi_story("cache", "ls").out


def test_cache_commands_take_boards_and_folders_of_projects(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    projects = [tmp_path / "cats", tmp_path / "dogs"]
    for project in projects:
        board = write_board(f"{project.name}/storyboards/a.yaml", reference="../../anchor.png")
        assert svi_story("render", board, *ANIMATIC).code == 0

    def keys(*paths: Path) -> list[str]:
        return sorted(item["path"] for item in json.loads(svi_story("cache", "ls", *paths, "--json").out))

    one, other = map(keys, projects)
    assert one != other
    assert keys(projects[0] / "storyboards/a.yaml") == keys(projects[0] / "storyboards") == one
    assert keys(tmp_path) == keys(*projects, projects[0]) == sorted(one + other)
    assert f"{len(one)} checked, 0 damaged" in svi_story("cache", "verify", projects[0]).err
    for board in tmp_path.glob("*/storyboards/a.yaml"):
        board.unlink()
    (projects[0] / "svi-story.toml").touch()
    assert keys(projects[0]) == one  # no board is left
    assert "in use" in svi_story("cache", "gc", projects[0]).err
    nowhere = svi_story("cache", "gc", "birds", "cats", "--yes")
    assert (nowhere.code, nowhere.err) == (2, "birds: does not exist; check the path\n")


def test_watch_serves_no_page_about_nothing(svi_story: Run) -> None:
    ended = svi_story("watch", "nowhere", "boards/none.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "nowhere: does not exist; check the path",
        "boards/none.yaml: does not exist; check the path",
    ]


def test_cache_verify_finds_damage(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    svi_story("render", write_board(), *ANIMATIC)
    assert svi_story("cache", "verify").code == 0
    victim = next((tmp_path / "renders/.cache/entries").rglob("frames.avi"))
    victim.write_bytes(victim.read_bytes()[:-1])
    ended = svi_story("cache", "verify")
    assert ended.code == 1
    assert "frames.avi" in ended.out
    assert svi_story("cache", "verify").code == 0


def test_cache_gc_deletes_only_with_yes_and_only_what_is_old_and_unused(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    board = write_board()
    svi_story("render", board, *ANIMATIC)
    entries = tmp_path / "renders/.cache/entries"
    count = len(list(entries.rglob("entry.json")))

    def left() -> int:
        return len(list(entries.rglob("entry.json")))

    for path in entries.rglob("*"):
        os.utime(path, (0, 0))
    svi_story("cache", "gc", "--yes")
    assert left() == count  # in use
    assert svi_story("cache", "gc").err.splitlines()[0] == "nothing would be deleted"
    board.unlink()
    (tmp_path / "renders/board.mp4").unlink()
    assert svi_story("cache", "gc").err.splitlines()[0].endswith("deleted, with svi-story cache gc --yes")
    assert left() == count
    svi_story("cache", "gc", "--yes")
    assert left() == 0


@pytest.mark.parametrize(
    "words", [("render",), ("plan", "x", "--nope"), ("render", "x", "--engine", "sora"), ("nothing",)]
)
def test_usage_errors_end_with_2(svi_story: Run, words: tuple[str, ...]) -> None:
    ended = svi_story(*words)
    assert ended.code == 2
    assert ended.out == ""


def test_text_of_strangers_is_never_markup_nor_control(write_board: Write, svi_story: Run) -> None:
    clips = [{"prompt": "A [bold red]cat[/bold red] [link=http://x]\u202e sits."}]
    board = write_board(title="[red]Fog[/red]", clips=clips)
    ended = svi_story("plan", board)
    assert "[bold red]cat[/bold red]" in ended.out
    assert svi_story("render", board, *ANIMATIC, "-v").code == 0
    bad = svi_story("validate", write_board("bad.yaml", **{"ti\x1b[31mtle": 1}))
    assert bad.code == 2
    assert "\x1b" not in bad.err


def test_a_bug_ends_with_3_and_a_log(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("svi_story.render.film.recipe_of", broken)
    ended = svi_story("render", write_board(), *ANIMATIC)
    assert ended.code == 3
    assert "Traceback" not in ended.err
    log = next(tmp_path.glob("svi-story-*.log"))
    assert str(log) in ended.err
    assert "ZeroDivisionError: planted" in log.read_text()


def test_a_failing_board_ends_with_1(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RenderError("the disk is full; free some space")

    monkeypatch.setattr("svi_story.render.film.recipe_of", broken)
    ended = svi_story("render", write_board(), *ANIMATIC)
    assert ended.code == 1
    assert "the disk is full; free some space" in ended.err


def test_a_reader_that_leaves_early_is_no_error_of_ours(write_board: Write) -> None:
    command = f"{sys.executable} -c 'from svi_story.cli import main; main()' schema | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_a_board_whose_name_is_no_utf_8(write_board: Write, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"b\xff.yaml")
    write_board().rename(odd)

    def run(*words: str) -> str:
        command = [
            sys.executable,
            "-c",
            "from svi_story.cli import main; main()",
            *words,
            str(odd),
            *ANIMATIC,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert run("render") == "renders/b\\udcff.mp4\n"
    assert json.loads(run("status", "--json"))["boards"][0]["state"] == "up to date"
    assert "nothing changed" in run("plan", "--why")


@pytest.mark.parametrize("path", ["n" * 300 + ".yaml", "nowhere/x.yaml"])
def test_a_path_that_cannot_be(svi_story: Run, path: str) -> None:
    ended = svi_story("validate", path)
    assert ended.code == 2
    assert "check the path" in ended.err


@pytest.mark.parametrize(
    "record", ["[" * 100_000, "[]", "{}", '{"version": 1}', '{"version": 1, "recipe": 1, "clips": [1]}', "\0"]
)
def test_a_broken_record_is_no_record(
    write_board: Write, svi_story: Run, tmp_path: Path, record: str
) -> None:
    board = write_board()
    svi_story("render", board, *ANIMATIC)
    film = (tmp_path / "renders/board.mp4").read_bytes()
    (tmp_path / "renders/board.json").write_text(record)
    assert "no record of what it was made from" in svi_story("plan", board, *ANIMATIC, "--why").out
    assert svi_story("status", board, *ANIMATIC).code == 0
    assert svi_story("render", board, *ANIMATIC).code == 0
    assert (tmp_path / "renders/board.mp4").read_bytes() == film


def test_a_full_standard_output_is_told(write_board: Write) -> None:
    command = f"{sys.executable} -c 'from svi_story.cli import main; main()' schema > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_was_deleted_under_us(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = (
        f"cd gone && rmdir ../gone && {sys.executable} -c 'from svi_story.cli import main; main()' cache ls"
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cd into one that does" in done.stderr


def test_texts_have_a_limit(write_board: Write, svi_story: Run) -> None:
    ended = svi_story("validate", write_board(style="x" * 10_001))
    assert ended.code == 2
    assert "style: has 10001 characters, more than 10000" in ended.err


@pytest.mark.parametrize("group", [(), ("cache",), ("models",)])
def test_lists_of_commands_say_whole_sentences(svi_story: Run, group: tuple[str, ...]) -> None:
    listed = svi_story(*group, "--help").out.split("Commands:\n")[1].splitlines()
    assert len(listed) > 2
    assert [line for line in listed if not line.endswith(".")] == []
    assert [line for line in listed if line.endswith("...")] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pick", "x", "1", "two"), "Invalid value for 'TAKE': 'two' is not a whole number"),
        (
            ("render", "x", "--engine", "animatc"),
            "Invalid value for --engine: 'animatc' is none of svi, animatic; did you mean 'animatic'?",
        ),
        (("render", "x", "--takes", "0"), "Invalid value for '--takes': 0 is less than 1"),
        (("watch", "x", "--port", "70000"), "Invalid value for '--port': 70000 is more than 65535"),
    ],
)
def test_a_wrong_value_is_explained(svi_story: Run, words: tuple[str, ...], message: str) -> None:
    ended = svi_story(*words)
    assert (ended.code, ended.err.splitlines()[-1]) == (2, f"Error: {message}")


def test_usages_name_each_argument_once(svi_story: Run) -> None:
    usages = [svi_story(*command, "--help").out.splitlines()[0] for command in (("render",), ("cache", "gc"))]
    assert [usage.split()[-1] for usage in usages] == ["{PATH}...", "[PATH]..."]
