"""Projects: where films and segments go, whatever the working directory; settings and their sources."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from svi_story.plan.fingerprints import Fingerprints
from svi_story.settings import user_cache, user_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

QUICK: dict[str, Any] = {
    "engine": {"name": "animatic", "max_frames": 5},
    "clips": [{"prompt": "The fog is lifting.", "frames": 5}],
}


@pytest.fixture
def in_storyboards(write_board: Write) -> Path:
    """A board below `project/storyboards`."""
    return write_board("project/storyboards/season/one.yaml", reference="../../../anchor.png", **QUICK)


def planned(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    (board,) = json.loads(ended.out)["boards"]
    return {"film": os.path.realpath(board["film"]), "segment": board["clips"][0]["segments"][0]}


def film_of(svi_story: Run, board: Path, *options: object) -> Path:
    return Path(planned(svi_story("plan", board, "--json", *options))["film"])


def settings_of(svi_story: Run, *words: object) -> dict[str, Any]:
    ended = svi_story("config", "--json", *words)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return {name: (each["value"], each["source"]) for name, each in found["settings"].items()}


def test_one_film_and_one_cache_from_every_working_directory(
    in_storyboards: Path, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert svi_story("render", in_storyboards).out == "project/renders/season/one.mp4\n"
    (tmp_path / "elsewhere").mkdir()
    for folder in ("elsewhere", "project", "project/storyboards", "project/storyboards/season"):
        monkeypatch.chdir(tmp_path / folder)
        for path in (in_storyboards, in_storyboards.parent, tmp_path / "project"):
            for given in (path, os.path.relpath(path)):
                found = planned(svi_story("plan", given, "--json"))
                assert found["film"] == str(tmp_path / "project/renders/season/one.mp4")
                assert found["segment"]["state"] == "cached"
        assert json.loads(svi_story("status", given, "--json").out)["boards"][0]["state"] == "up to date"
        assert {path.name for path in Path().iterdir()} <= {"renders", "storyboards", "season", "one.yaml"}


def test_where_a_project_begins(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    board = write_board("a/b/board.yaml", reference="../../anchor.png")
    assert film_of(svi_story, board) == tmp_path / "a/b/renders/board.mp4"
    (tmp_path / "a/svi-story.toml").touch()
    assert film_of(svi_story, board) == tmp_path / "a/renders/b/board.mp4"
    assert film_of(svi_story, board, "-o", "films") == tmp_path / "films/b/board.mp4"
    inner = write_board("a/storyboards/board.yaml", reference="../../anchor.png")
    assert film_of(svi_story, inner) == tmp_path / "a/renders/board.mp4"
    (tmp_path / "link").symlink_to("a/b")
    assert film_of(svi_story, Path("link/board.yaml")) == tmp_path / "a/renders/b/board.mp4"
    shutil.copy(svi_story("export", board, "--to", "bundle", "--engine", "animatic").out.strip(), "a/b/x.zip")
    assert film_of(svi_story, Path("a/b/x.zip")) == tmp_path / "a/b/renders/x.mp4"


def test_a_project_is_not_searched_above_the_home_directory(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    (tmp_path / "svi-story.toml").touch()
    board = write_board("home/film/board.yaml", reference="../../anchor.png")
    assert film_of(svi_story, board) == tmp_path / "home/film/renders/board.mp4"
    (tmp_path / "home/svi-story.toml").touch()
    assert film_of(svi_story, board) == tmp_path / "home/renders/film/board.mp4"


def test_settings_of_another_user_are_ignored(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_board("film/board.yaml", reference="../anchor.png")
    (tmp_path / "svi-story.toml").write_text("output = 'films'")
    monkeypatch.setattr("svi_story.settings.user_id", lambda: os.getuid() + 1)
    ended = svi_story("plan", "film/board.yaml", "--json")
    assert planned(ended)["film"] == str(tmp_path / "film/renders/board.mp4")
    assert "svi-story.toml belongs to another user and is ignored" in ended.err


def test_every_setting_comes_from_every_source(
    svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, project = user_file(), tmp_path / "svi-story.toml"
    own.parent.mkdir(parents=True)
    steps: list[tuple[Path | None, dict[str, str], dict[str, Any]]] = [
        (own, {"engine": "svi", "models": "m", "cache": "c", "output": "o"}, {}),
        (own, {"memory": "stream", "attention": "torch-math", "workers": "1", "weights": "w"}, {}),
        (project, {"engine": "animatic", "models": "pm", "cache": "pc", "output": "po"}, {}),
        (project, {"memory": "offload", "attention": "torch-cudnn", "workers": "2", "weights": "pw"}, {}),
        (None, {"engine": "svi", "models": "em", "cache": "ec", "output": "eo"}, {}),
        (None, {"memory": "resident", "attention": "auto", "workers": "3", "weights": "high=ew"}, {}),
    ]
    assert {source for _, source in settings_of(svi_story).values()} == {"default"}
    for file, values, _ in steps:
        if file is None:
            for name, value in values.items():
                monkeypatch.setenv(f"SVI_STORY_{name.upper()}", value)
        else:
            written = {
                name: f'{{high = "{value}"}}'
                if name == "weights"
                else value
                if name == "workers"
                else f'"{value}"'
                for name, value in values.items()
            }
            with file.open("a") as text:
                text.writelines(f"{name} = {value}\n" for name, value in written.items())
        found, folder = settings_of(svi_story), file.parent if file else tmp_path
        for name, value in values.items():
            expected: Any = value
            if name in ("cache", "output"):
                expected = str(folder / value)
            elif name == "models":
                expected = [str(folder / value)]
            elif name == "weights":
                expected = {"high": str(folder / value.removeprefix("high="))}
            elif name == "workers":
                expected = int(value)
            assert found[name] == (expected, str(file) if file else f"SVI_STORY_{name.upper()}")


def test_an_option_comes_first(in_storyboards: Path, svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVI_STORY_OUTPUT", "environment")
    monkeypatch.setenv("SVI_STORY_ENGINE", "animatic")
    assert film_of(svi_story, in_storyboards) == Path("environment/season/one.mp4").absolute()
    assert film_of(svi_story, in_storyboards, "-o", "option") == Path("option/season/one.mp4").absolute()
    assert svi_story("plan", in_storyboards, "--engine", "svi").out.count("engine svi") == 1


def test_settings_are_checked(in_storyboards: Path, svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("project/svi-story.toml")
    file.write_text(
        'engne = "svi"\nmemory = "strem"\nworkers = true\ncache = "../cache"\noutput = "/films"\n'
        "models = 5\n[watch]\nport = 1\n"
    )
    monkeypatch.setenv("SVI_STORY_ENGINE", "anmatic")
    monkeypatch.setenv("SVI_STORY_MODEL", "weights")
    monkeypatch.setenv("SVI_STORY_RUN_OUTCOME", "done")  # what --on-done has, which may call svi-story
    ended = svi_story("plan", in_storyboards)
    assert ended.code == 2
    assert "RUN_OUTCOME" not in ended.err
    for line in (
        'svi-story.toml:1: engne: is not a setting; did you mean "engine"?',
        'svi-story.toml:2: memory: "strem" is none of auto, resident, offload, stream; did you mean "stream"',
        "svi-story.toml:3: workers: true cannot be used; write workers = 2",
        'svi-story.toml:4: cache: "../cache" is outside the project',
        'svi-story.toml:5: output: "/films" is outside the project',
        "svi-story.toml:6: models: 5 cannot be used",
        "svi-story.toml:7: watch: belongs in your own ",
        'SVI_STORY_ENGINE: "anmatic" is none of svi, animatic; did you mean "animatic"?',
        "SVI_STORY_MODEL: is not a setting; did you mean SVI_STORY_MODELS?",
    ):
        assert line in ended.err
    file.write_text('models = "C:\\models"\n')
    assert "svi-story.toml:1: is not valid TOML" in svi_story("plan", in_storyboards).err
    file.write_text("engine = animatic\n")
    assert 'write text in quotes, as "animatic"' in svi_story("plan", in_storyboards).err
    Path("project/out").symlink_to("/")
    file.write_text('output = "out"\n')
    assert "outside the project" in svi_story("config", "project").err


def test_where_the_page_is_served_is_set_in_the_users_own_file(
    in_storyboards: Path, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = user_file()
    own.parent.mkdir(parents=True)
    monkeypatch.setenv("SVI_STORY_WATCH", "host=0.0.0.0")
    assert settings_of(svi_story)["watch"] == (
        {"host": "127.0.0.1", "port": 8765, "names": []},
        "default",
    )
    own.write_text('[watch]\nport = 9000\nnames = ["gpu.lan"]\n', "utf-8")
    expected = {"host": "127.0.0.1", "port": 9000, "names": ["gpu.lan"]}
    assert settings_of(svi_story)["watch"] == (expected, str(own))
    assert "host = 127.0.0.1, port = 9000, names = gpu.lan" in svi_story("config").out
    own.write_text('[watch]\nprot = 9000\nport = "80"\nhost = ""\nnames = ["a b"]\n', "utf-8")
    ended = svi_story("watch", in_storyboards)
    assert ended.code == 2
    for line in (
        'svi-story.toml:2: watch.prot: is not a setting; did you mean "port"? settings are host, port, names',
        'svi-story.toml:3: watch.port: "80" cannot be used; write port = 9000',
        'svi-story.toml:4: watch.host: "" cannot be used; write host = "10.0.0.7"',
        'svi-story.toml:5: watch.names: a list cannot be used; write names = ["gpu.example.org"]',
    ):
        assert line in ended.err
    own.write_text('[watch]\nhost = "203.0.113.1"\nport = 9000\n', "utf-8")
    assert "cannot listen on 203.0.113.1, port 9000" in svi_story("watch", in_storyboards).err
    told = svi_story("watch", in_storyboards, "--port", 9001).err
    assert "203.0.113.1, port 9001" in told
    assert told.endswith("; choose another --host\n")
    for name in ("\\u0000", "\u00fc" * 70):
        own.write_text(f'[watch]\nhost = "{name}"\n', "utf-8")
        ended = svi_story("watch", in_storyboards)
        assert (ended.code, "which is no name or address of this machine" in ended.err) == (2, True)
    own.write_text("watch = 5\n", "utf-8")
    assert "svi-story.toml:1: watch: 5 cannot be used; write watch = {host" in svi_story("config").err


def test_projects_of_one_command_agree_about_the_machine(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    for name, memory in (("a", "stream"), ("b", "offload")):
        write_board(f"{name}/board.yaml", reference="../anchor.png")
        (tmp_path / name / "svi-story.toml").write_text(f'memory = "{memory}"\n')
    ended = svi_story("validate", "a", "b")
    assert ended.code == 2
    assert "disagree about `memory`: stream for a/board.yaml, offload for b/board.yaml" in ended.err
    assert "--memory" in ended.err
    assert svi_story("validate", "a", "b", "--memory", "auto").code == 0


def test_segments_in_the_old_place_are_used_and_stay(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    old = write_board(**QUICK)
    assert svi_story("render", old).code == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "renders").rglob("*"))
    moved = tmp_path / "project/board.yaml"
    moved.parent.mkdir()
    old.rename(moved)
    shutil.copy("anchor.png", moved.parent)
    assert planned(svi_story("plan", moved, "--json"))["segment"]["state"] == "cached"
    ended = svi_story("render", moved)
    assert (ended.code, ended.out) == (0, "project/renders/board.mp4\n")
    assert ended.err.count("segments are also taken from renders/.cache") == 1
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "renders").rglob("*")) == before
    assert svi_story("plan", moved, "--cache", "project/renders/.cache").err == ""


def test_looking_writes_nothing(in_storyboards: Path, svi_story: Run, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for command in ("plan", "status", "validate"):
        assert svi_story(command, "project").code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_told_before_anything_starts(
    in_storyboards: Path, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    closed = str(in_storyboards.parents[2])
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: access(path, mode) and (mode & os.W_OK == 0 or closed not in str(path)),
    )
    for options, what in (((), "its film here"), (("-o", "films"), "its segments here")):
        ended = svi_story("render", in_storyboards, *options)
        assert ended.code == 2
        assert f"{what}, but this folder cannot be written; choose other folders with -o DIR" in ended.err
        assert "--cache DIR" in ended.err
    assert not Path("project/renders").exists()
    assert svi_story("plan", in_storyboards).code == 0
    assert svi_story("render", in_storyboards, "-o", "films", "--cache", "cache").code == 0


def test_yaml_that_is_no_storyboard_is_skipped_in_folders(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    write_board("boards/good.yaml", reference="../anchor.png")
    flow = "{version: 1, reference: ../anchor.png, clips: [{prompt: The fog is lifting.}]}"
    (tmp_path / "boards/flow.YAML").write_text(flow)  # as Windows programs write it
    (tmp_path / "boards/broken.yaml").write_text("version: 1\nclips: [\n")
    for name, text in (("compose", "version: '3'\nservices: {}"), ("chart", "a: {{ .Values }}"), ("e", "")):
        (tmp_path / f"boards/{name}.yaml").write_text(text)
    ended = svi_story("validate", "boards")
    assert ended.code == 1
    assert ended.out.count(": valid: ") == 2
    assert "boards/broken.yaml:" in ended.err
    assert ended.err.count("not a storyboard") == 1
    assert "boards: skipped 3 YAML files" in ended.err
    assert svi_story("validate", "boards/compose.yaml").code == 2


def test_hashes_of_older_versions_are_found(in_storyboards: Path, svi_story: Run, tmp_path: Path) -> None:
    memo = tmp_path / "project/renders/.cache/memo.json"
    memo.parent.mkdir(parents=True)
    found = Fingerprints(memo)
    digest = found.file(in_storyboards)
    found.save()
    again = Fingerprints.of_this_machine(lambda _event: None, [memo.parent])
    assert (again.file(in_storyboards), again.hashed) == (digest, 0)
    assert svi_story("render", in_storyboards).code == 0
    assert (user_cache() / "hashes.json").exists()


def test_a_file_where_a_folder_belongs_is_named_before_anything_starts(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    board = write_board()
    (tmp_path / "notes.txt").write_text("mine")
    for option in ("-o", "--cache"):
        ended = svi_story("render", board, "--engine", "animatic", option, "notes.txt/films")
        assert ended.code == 2
        assert ended.err.strip() == f"notes.txt: is not a folder; name one with {option}"
    missing = svi_story("config", "nowhere")
    assert (missing.code, missing.err.strip()) == (2, "nowhere: does not exist; check the path")
