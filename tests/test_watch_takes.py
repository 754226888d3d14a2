"""Takes on the live page: side by side, and picked by a request that only the page can make."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from PIL import Image
from test_watch import FOREIGN, Site, ask, log_of_a_run, open_site

from svi_story import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Run = Callable[..., Ended]
    Write = Callable[..., Path]

ANIMATIC = ("--engine", "animatic")
CLIPS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "The fog turns.", "frames": 13},
    {"id": "b", "prompt": "The sun turns.", "frames": 13, "takes": 3},
]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the first test renders, so that the others can copy it."""
    return tmp_path_factory.mktemp("rendered") / "copy"


@pytest.fixture
def site(write_board: Write, svi_story: Run, rendered: Path) -> Site:
    """A board of which two of three takes are rendered, and another one that is not watched."""
    two = [CLIPS[0], {**CLIPS[1], "takes": 2}]
    board = write_board("boards/film.yaml", reference="../anchor.png", clips=two)
    if not rendered.exists():
        assert svi_story("render", board, *ANIMATIC).code == 0
        shutil.copytree("boards/renders", rendered, copy_function=shutil.copy2)
    shutil.copytree(rendered, "boards/renders", dirs_exist_ok=True)
    write_board("boards/film.yaml", reference="../anchor.png", clips=CLIPS)
    write_board("other.yaml", clips=CLIPS)
    found = open_site(Path("boards"))
    found.watched.refresh()
    return found


def shown(site: Site) -> dict[str, Any]:
    (board,) = site.watched.refresh()["boards"]
    found: dict[str, Any] = board
    return found


def request(site: Site, **changes: object) -> bytes:
    """The request of the page to pick take 2 of clip b."""
    board = shown(site)
    about = {"path": board["path"], "digest": board["digest"], "clip": "b", "take": 2, **changes}
    return json.dumps(about).encode()


def picked() -> int:
    board = yaml.safe_load(Path("boards/film.yaml").read_text("utf-8"))
    return int(board["clips"][1].get("pick", 1))


def test_takes_are_side_by_side(site: Site) -> None:
    first, second = shown(site)["clips"]
    assert first["takes"] == []
    assert [(each["number"], each["picked"], each["state"]) for each in second["takes"]] == [
        (1, True, "done"),
        (2, False, "done"),
        (3, False, "waiting"),
    ]
    for number in (1, 2):
        pictures = []
        for kind in ("loop", "still"):
            answer = site.get(f"media/0/take/1/{number}/{kind}")
            assert (answer.status, answer.headers["content-type"]) == (200, "image/webp")
            pictures.append(Image.open(io.BytesIO(answer.body)))
        assert [getattr(each, "n_frames", 1) for each in pictures] == [6, 1]
    bodies = [site.get(f"media/0/take/1/{number}/loop").body for number in (1, 2)]
    assert bodies[0] != bodies[1]
    for path in (
        "0/take/1/3/loop",
        "0/take/0/2/loop",
        "0/take/9/1/loop",
        "1/take/1/1/loop",
        "0/take/1/1/raw",
    ):
        assert site.get(f"media/{path}").status == 404


def test_a_take_that_was_requested_on_the_command_line_is_shown(site: Site, svi_story: Run) -> None:
    words = ("--only", "a", "--takes", 2)
    assert svi_story("render", "boards/film.yaml", *ANIMATIC, *words).code == 0
    takes = shown(open_site(Path("boards")))["clips"][0]["takes"]
    assert [each["state"] for each in takes] == ["done", "done"]


def test_takes_that_follow_the_film_are_being_rendered(site: Site) -> None:
    board, film = Path("boards/film.yaml"), Path("boards/renders/film.mp4")
    start = [events.RunStarted(1, 4), events.BoardStarted(board, film, 2, 4, 1, takes=1)]
    done = events.FilmDone(board, film, 26, 1.7, made=True)
    log_of_a_run(Path("boards/renders/.cache"), *start, done)
    assert shown(site)["state"] == "rendering"
    step = events.StepDone(board, "b", 0, 2, 8, take=3)
    log_of_a_run(Path("boards/renders/.cache"), *start, done, step)
    state = site.watched.refresh()
    assert state["boards"][0]["state"] == "rendering"
    assert [each["state"] for each in state["boards"][0]["clips"][1]["takes"]] == ["done", "done", "sampling"]
    assert state["runs"][0]["now"] == "sampling clip b, take 3 (step 2/8)"


def test_a_take_is_picked_and_only_its_line_is_written(site: Site) -> None:
    before = Path("boards/film.yaml").read_text("utf-8")
    assert site.post(request(site), "pick").status == 204
    after = Path("boards/film.yaml").read_text("utf-8")
    assert picked() == 2
    assert [line for line in after.splitlines() if line not in before.splitlines()] == ["  pick: 2"]
    assert [each["picked"] for each in shown(site)["clips"][1]["takes"]] == [False, True, False]
    assert site.post(request(site), "pick").status == 204  # it is picked already
    assert Path("boards/film.yaml").read_text("utf-8") == after


def test_no_other_site_and_nobody_without_the_cookie_picks(site: Site) -> None:
    body = request(site)
    assert [site.post(body, "pick", **headers).status for headers in FOREIGN] == [403] * len(FOREIGN)
    assert site.post(body, "pick", cookie="").status == 401
    assert ask(site.server, "/pick", "POST", body, cookie=site.cookie).status == 404
    assert site.get("pick").status == 405
    assert picked() == 1


ODD = (
    *(b"", b"[]", b"{}", b"\xff", b"[" * 900, b'{"path": 1, "digest": "", "clip": "b", "take": 2}'),
    *(b'{"path": "boards/film.yaml", "digest": "", "clip": "b", "take": true}',),
)


def test_odd_and_foreign_requests_write_nothing(site: Site) -> None:
    assert [site.post(body, "pick").status for body in ODD] == [400] * len(ODD)
    assert site.post(b"x" * 20_000, "pick").status == 413
    other = Path("other.yaml").read_bytes()
    paths = (
        "other.yaml",
        "boards/../other.yaml",
        str(Path("other.yaml").absolute()),
        "/etc/passwd",
        "",
        "\0",
    )
    for path in paths:
        assert site.post(request(site, path=path), "pick").status == 404
    for changes in ({"clip": "c"}, {"clip": "2"}, {"clip": "a"}, {"take": 0}, {"take": 4}, {"take": -1}):
        assert site.post(request(site, **changes), "pick").status == 404
    assert Path("other.yaml").read_bytes() == other
    assert picked() == 1


def test_a_board_that_was_changed_in_between_is_not_written(site: Site, write_board: Write) -> None:
    body = request(site)
    changed = [CLIPS[0], {**CLIPS[1], "prompt": "Something else turns."}]
    for clips in (CLIPS[:1], changed):
        text = write_board("boards/film.yaml", reference="../anchor.png", clips=clips).read_bytes()
        answer = site.post(body, "pick")
        assert answer.status == 409
        assert b"changed" in answer.body
        assert Path("boards/film.yaml").read_bytes() == text
    assert site.post(request(site), "pick").status == 204  # once the page has seen the new board
    assert picked() == 2


def test_a_board_outside_that_a_link_leads_to_is_not_written(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    outside = write_board("outside/film.yaml", reference="../anchor.png", clips=CLIPS)
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards/film.yaml").symlink_to(outside)
    text = outside.read_bytes()
    found = open_site(tmp_path / "boards")
    answer = found.post(request(found), "pick")
    assert (answer.status, b"a link leads to it" in answer.body) == (409, True)
    assert outside.read_bytes() == text
    named = open_site(tmp_path / "boards/film.yaml")  # the user named it
    assert named.post(request(named), "pick").status == 204
    assert outside.read_bytes() != text


def test_what_keeps_a_board_from_being_written_is_said(site: Site) -> None:
    Path("boards/film.yaml").chmod(0o444)
    answer = site.post(request(site), "pick")
    assert answer.status == 409
    assert b"read-only" in answer.body
    assert picked() == 1
