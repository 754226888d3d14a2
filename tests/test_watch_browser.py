"""The live page in a real browser, with real renders: `make browser`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_review_browser import CONTRASTS
from test_review_browser import chromium as chromium  # noqa: PLC0414 - a fixture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Write = Callable[..., Path]

pytestmark = pytest.mark.browser

connect = socket.socket.connect


@pytest.fixture(autouse=True)
def loopback(own_ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The browser's driver may be talked to."""
    monkeypatch.setattr(socket.socket, "connect", connect)


@contextmanager
def running(*words: object) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "svi_story", *map(str, words), "--engine", "animatic"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def boards(write_board: Write) -> Path:
    """Boards that take a while."""
    clips = [{"id": f"c{n}", "prompt": f"Clip {n} <b>is</b> drifting.", "duration": "4s"} for n in range(6)]
    for name in ("one", "two"):
        write_board(f"boards/{name}.yaml", reference="../anchor.png", resolution="480x288", clips=clips)
    return Path("boards")


@pytest.fixture
def address(boards: Path) -> Iterator[str]:
    with running("watch", boards, "--port", 0) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


def until(look: Callable[[], bool]) -> bool:
    """Whether something is so within a minute; the page's policy forbids `wait_for_function`."""
    end = time.monotonic() + 60
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


BUTTONS = "[...document.querySelectorAll('main button')]"
POST = """async (url) => {
  try { return (await fetch(url, { method: "POST", credentials: "include", body: "{}" })).status; }
  catch { return "refused"; }
}"""
SIZES = ((1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (390, 844, "dark"))


def test_a_render_is_watched_killed_resumed_and_stopped(chromium: Any, address: str, boards: Path) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    assert "token" not in page.url
    page.get_by_text("No render is running.").wait_for()
    assert page.locator(".cell.waiting").count() == 13  # one of them in the legend
    assert page.locator("b", has_text="is").count() == 0  # prompts are no markup
    with running("render", boards) as render:
        page.locator(".run.running").wait_for(timeout=60_000)
        page.locator(".boards .cell.decoding").first.wait_for(timeout=60_000)
        page.locator(".run figure img").wait_for(timeout=60_000)
        page.locator(".boards .cell.done").first.wait_for(timeout=60_000)
        os.kill(render.pid, signal.SIGKILL)
        page.locator(".run.died").wait_for(timeout=60_000)
        assert "the same command resumes it" in page.locator(".run.died").inner_text()
    with running("render", boards) as render:
        page.locator(".run.running").wait_for(timeout=60_000)
        assert page.locator("#past tr").count() == 1
        stop = page.get_by_role("button", name="Stop after this clip")
        stop.focus()
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Really stop after this clip?").press("Enter")
        page.get_by_text("Stop is requested.").wait_for()
        assert render.wait(120) == 130
        page.get_by_text("No render is running.").wait_for(timeout=60_000)
        assert "stopped" in page.locator("#past tr").first.inner_text()
    page.locator(".boards .cell.done").first.press("Enter")
    page.locator("dialog[open]").wait_for()
    assert until(lambda: page.evaluate("document.querySelector('video').readyState >= 2"))
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert errors == []
    context.close()


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_it_fits_and_can_be_read(
    chromium: Any, address: str, boards: Path, width: int, height: int, scheme: str
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    with running("render", boards):
        page.locator(".run.running").wait_for(timeout=60_000)
        page.locator(".boards .cell.done").first.wait_for(timeout=60_000)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        poor = [text for ratio, text in page.evaluate(CONTRASTS) if ratio < 4.5]
        assert poor == []
        assert (
            page.evaluate(f"{BUTTONS}.filter((each) => !(each.ariaLabel || each.textContent.trim())).length")
            == 0
        )
        assert (
            page.evaluate(f"{BUTTONS}.filter((each) => each.getBoundingClientRect().height < 28).length") == 0
        )
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    context.close()


def test_takes_play_side_by_side_and_one_is_picked(chromium: Any, write_board: Write) -> None:
    clips = [
        {"id": "a", "prompt": "A.", "duration": "1s", "takes": 2},
        {"id": "b", "prompt": "B.", "frames": 13},
    ]
    board = write_board("boards/takes.yaml", reference="../anchor.png", clips=clips)
    with running("render", board) as render:
        assert render.wait(120) == 0
    with running("watch", "boards", "--port", 0) as process:
        assert process.stdout is not None
        context = chromium.new_context(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
        page = context.new_page()
        page.goto(process.stdout.readline().strip())
        page.locator(".boards .cell").first.press("Enter")
        page.locator("#takes img").nth(1).wait_for(timeout=60_000)
        sources = "[...document.querySelectorAll('#takes img')].map((each) => each.src.slice(0, 4))"
        assert page.evaluate(sources) == ["http", "http"]  # nothing moves by itself
        page.get_by_role("button", name="Play side by side").press("Enter")
        assert until(lambda: page.evaluate(sources) == ["blob", "blob"])
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_role("button", name="Use take 2").press("Enter")
        page.get_by_role("button", name="Really use take 2?").press("Enter")
        page.get_by_text("is written into the board").wait_for(timeout=60_000)
        page.locator("#takes li.picked", has_text="Take 2").wait_for(timeout=60_000)
        assert "pick: 2" in board.read_text("utf-8")
        poor = [text for ratio, text in page.evaluate(CONTRASTS.replace("main *", "dialog *")) if ratio < 4.5]
        assert poor == []
        context.close()


def test_forty_boards_fit_a_phone_and_are_read_at_once(chromium: Any, write_board: Write) -> None:
    for number in range(40):
        write_board(f"boards/{number:02}.yaml", reference="../anchor.png", seed=number)
    with running("watch", "boards", "--port", 0) as process:
        assert process.stdout is not None
        context = chromium.new_context(viewport={"width": 390, "height": 844})
        page = context.new_page()
        page.goto(process.stdout.readline().strip())
        assert until(lambda: page.locator("#boards > li").count() == 40)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        context.close()


def test_without_the_token_there_is_no_page(chromium: Any, address: str) -> None:
    context = chromium.new_context()
    page = context.new_page()
    assert page.goto(address.partition("?")[0]).status == 401
    page.goto(address)
    page.locator("#boards > li").first.wait_for()
    other = context.new_page()  # another site, which tries to stop a run
    page_of_others = {"body": "<p>hello</p>", "content_type": "text/html"}
    other.route("http://evil.test/*", lambda route: route.fulfill(**page_of_others))
    other.goto("http://evil.test/")
    answer = other.evaluate(POST, page.url + "stop")
    assert answer == "refused"
    context.close()
