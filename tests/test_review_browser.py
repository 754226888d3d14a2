"""The page in a real browser: `make browser`. Needs Playwright, and its own Chromium or one on the PATH."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from review_films import at, hue, level, pan, plant, review, scene_in

from svi_story.review.report import Playback, write_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


CONTRASTS = """() => {
  const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const paper = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const says = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll("main *, footer *")]
    .filter((each) => each.checkVisibility() && says(each) && !each.closest("svg, .strip, video"))
    .map((each) => {
      const pair = [light(getComputedStyle(each).color), light(paper(each))].sort((x, y) => y - x);
      return [(pair[0] + 0.05) / (pair[1] + 0.05), each.outerHTML.slice(0, 80)];
    });
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error:  # without a path it is Playwright's own
            pytest.skip("no Chromium: install one, or run `playwright install chromium`")
        yield browser
        browser.close()


class Seen:
    """A page that is open, and all that it complained about or asked for."""

    def __init__(
        self, browser: Any, page: Path, width: int = 1280, height: int = 800, **options: Any
    ) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(page.absolute().as_uri())
        self.page.wait_for_timeout(150)

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.said.append(f"asked for {url}")

    def __call__(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture
def page(write_board: Write, svi_story: Run, tmp_path: Path) -> Path:
    """A film with two faults, whose title and prompts are hostile; the film's name is odd."""
    clips = [{"prompt": f"{HOSTILE} {'W' * 300}", "id": f"clip-{n}"} for n in (1, 2, 3)]
    board = write_board(reference=scene_in(tmp_path), title=HOSTILE, clips=clips)
    assert svi_story("render", board, "--engine", "animatic").code == 0
    film = pan(37, (64, 64), 0.001)
    film = [hue(each, 0, 0.5) if place >= 14 and place % 2 else each for place, each in enumerate(film)]
    found = review(plant(board, at(3, level(0))(film)))
    film_file = Path("renders/a#b c%.mp4")
    Path("renders/board.mp4").rename(film_file)
    target = tmp_path / "renders" / "board.review.html"
    write_page(found, Playback(film_file, ""), target)
    return target


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_it_opens_from_disk_and_fits(chromium: Any, page: Path, width: int, scheme: str) -> None:
    seen = Seen(chromium, page, width, color_scheme=scheme)
    assert seen.said == []
    assert seen("document.documentElement.scrollWidth") <= width
    assert seen("document.title") == f"{HOSTILE} – review"
    assert seen("document.querySelector('video').error") is None
    assert seen("document.querySelector('video').duration") == pytest.approx(37 / 15, abs=0.1)
    dark = seen("getComputedStyle(document.documentElement).backgroundColor") == "rgb(21, 21, 19)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(chromium: Any, page: Path, scheme: str) -> None:
    """Every text colour keeps a contrast of 4.5 to 1 with the paper it stands on."""
    seen = Seen(chromium, page, color_scheme=scheme)
    ratios = seen(CONTRASTS)
    assert len(ratios) > 50
    assert min(ratios)[0] >= 4.5, min(ratios)


def test_keys_walk_through_clips_and_warnings(chromium: Any, page: Path) -> None:
    seen = Seen(chromium, page)
    time = "document.querySelector('video').currentTime"
    seen.page.keyboard.press("j")
    seen.page.wait_for_timeout(150)
    assert seen("document.activeElement.id") == "clip-2"
    assert seen(time) == pytest.approx(13.25 / 15, abs=0.02)
    seen.page.keyboard.press("k")
    assert seen("document.activeElement.id") == "clip-1"
    seen.page.keyboard.press("w")
    seen.page.wait_for_timeout(150)
    assert seen("document.activeElement.hasAttribute('data-warning')")
    seen.page.keyboard.press("Tab")
    assert seen("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert seen.said == []


def test_the_slider_and_the_plots_seek_and_read_off(chromium: Any, page: Path) -> None:
    seen = Seen(chromium, page)
    seen.page.locator("#time").focus()
    for _ in range(5):
        seen.page.keyboard.press("ArrowRight")
    assert seen("document.querySelector('#now').textContent") == "0:00.35"
    assert seen("document.querySelector('[data-plot=drift] output').textContent") != ""
    canvas = seen.page.locator("[data-plot=motion] .canvas")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] / 2, "y": 20})
    seen.page.wait_for_timeout(150)
    assert seen("document.querySelector('video').currentTime") == pytest.approx(37 / 30, abs=0.05)
    seen.page.locator(".frames a").nth(5).click()
    seen.page.wait_for_timeout(150)
    assert seen("document.querySelector('video').currentTime") == pytest.approx(24.25 / 15, abs=0.02)


def test_without_scripts_it_can_be_read(chromium: Any, page: Path) -> None:
    seen = Seen(chromium, page, java_script_enabled=False)
    assert seen.page.locator("article.clip").count() == 3
    assert seen.page.locator("#time").is_hidden()
    assert seen.page.locator(".frames a").first.get_attribute("href") == "./a%23b%20c%25.mp4#t=0.017"
    assert "Black frames" in seen.page.locator(".group h3").all_inner_texts()


def test_without_a_film_it_works_too(chromium: Any, page: Path, tmp_path: Path) -> None:
    next(Path("renders").glob("*.mp4")).unlink()
    seen = Seen(chromium, page)
    seen.page.keyboard.press("j")
    assert seen("document.activeElement.id") == "clip-2"
    assert not [each for each in seen.said if "ERR_FILE_NOT_FOUND" not in each]


def test_space_plays_wherever_the_reader_is(chromium: Any, page: Path) -> None:
    seen = Seen(chromium, page)
    for key in ("j", "k", "w"):
        seen.page.keyboard.press(key)
        seen("document.querySelector('video').pause()")
        seen.page.keyboard.press("Space")
        seen.page.wait_for_timeout(60)
        assert not seen("document.querySelector('video').paused"), key
    seen("document.querySelector('video').pause()")
    seen.page.locator("nav.strip a").first.click()
    seen.page.keyboard.press("Space")
    seen.page.wait_for_timeout(60)
    assert not seen("document.querySelector('video').paused")


def test_a_seam_is_a_button(chromium: Any, page: Path) -> None:
    seen = Seen(chromium, page)
    mark = seen.page.get_by_role("button").and_(seen.page.locator("g.seam")).last
    mark.focus()
    seen.page.keyboard.press("Space")
    seen.page.wait_for_timeout(100)
    assert seen("document.querySelector('video').currentTime") == pytest.approx(25.25 / 15, abs=0.02)
    assert seen("document.querySelector('video').paused")


def test_keys_walk_on_where_the_film_has_ended(chromium: Any, page: Path) -> None:
    """What exists of a film that is half made is shorter than the film that the page is about."""
    film = next(Path("renders").glob("a*.mp4"))
    html = page.read_text("utf-8").replace('data-t="', 'data-t="9')  # every clip starts after the film's end
    page.write_text(html, "utf-8")
    assert film.is_file()
    seen = Seen(chromium, page)
    for clip in ("clip-2", "clip-3"):
        seen.page.keyboard.press("j")
        seen.page.wait_for_timeout(150)
        assert seen("document.activeElement.id") == clip


SIZES = [(320, 568), (390, 844), (844, 390), (768, 1024), (1280, 500), (1280, 800), (1920, 1080)]


@pytest.mark.parametrize(("width", "height"), SIZES, ids=str)
@pytest.mark.parametrize("portrait", [False, True])
def test_the_player_is_in_view_with_warnings_and_plots(
    chromium: Any, page: Path, width: int, height: int, portrait: bool
) -> None:
    if portrait:
        html = page.read_text("utf-8").replace(
            'width="64" height="64" poster', 'width="48" height="832" poster'
        )
        page.write_text(html, "utf-8")
    seen = Seen(chromium, page, width, height)
    for target in (".group", "[data-plot=drift]", "[data-plot=motion]", "[data-plot=seams]"):
        seen(f"document.querySelector('{target}').scrollIntoView({{block: 'center', behavior: 'instant'}})")
        seen.page.wait_for_timeout(50)
        box = seen.page.locator("video").bounding_box()
        assert box["y"] >= -1, target
        assert box["y"] + box["height"] <= height + 1, target
        under = seen.page.locator(target).first.bounding_box()
        is_beside = box["x"] + box["width"] <= under["x"] or box["y"] + box["height"] <= under["y"] + 1
        assert is_beside or under["height"] > height - box["height"] - 100, f"{target} is hidden"


def test_takes_play_in_step_and_stop(chromium: Any, write_board: Write, svi_story: Run) -> None:
    clips = [{"prompt": "A.", "duration": "1s", "takes": 2}]
    board = write_board(clips=clips)
    assert svi_story("render", board, "--engine", "animatic").code == 0
    assert svi_story("review", board, "--engine", "animatic").code == 0
    seen = Seen(chromium, Path("renders/board.review.html"), width=390)
    sources = "[...document.querySelectorAll('.takes img')].map((each) => each.src)"
    still = seen.page.evaluate(sources)
    button = seen.page.get_by_role("button", name="Play all")
    button.press("Enter")
    moving = seen.page.evaluate(sources)
    assert {each.partition("#")[2] for each in moving} == {"1"}
    assert not set(moving) & set(still)
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    seen.page.get_by_role("button", name="Stop all").press("Enter")
    assert seen.page.evaluate(sources) == still
    seen.page.get_by_role("button", name="Play take 2").press(" ")
    assert [each.partition("#")[2] for each in seen.page.evaluate(sources)] == ["", "3"]
    assert seen.said == []
