"""The server of the live page: what it shows, to whom, and what it answers to everybody else."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from svi_story import events
from svi_story.event_json import as_json
from svi_story.render import runs
from svi_story.render.live import live_preview
from svi_story.watch import server as server_module
from svi_story.watch.server import COOKIE, WatchServer
from svi_story.watch.state import Watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.events import Event

    Run = Callable[..., Ended]
    Write = Callable[..., Path]

HOST = "127.0.0.1:8765"


@dataclass
class Answer:
    """What the server sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def ask(server: WatchServer, path: str, method: str = "GET", body: bytes = b"", /, **headers: str) -> Answer:
    """One request, as uvicorn would hand it over. Underscores in names of headers stand for hyphens."""
    given = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items() if value],
        "server": ("127.0.0.1", 8765),
        "client": ("127.0.0.1", 4),
    }
    answer = Answer()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        return await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    asyncio.run(server(scope, receive, send))
    return answer


@dataclass
class Site:
    """A server, and a browser that has its cookie."""

    server: WatchServer
    watched: Watched
    cookie: str

    def get(self, path: str, **headers: str) -> Answer:
        return ask(self.server, f"{self.server.prefix}/{path}", "GET", b"", cookie=self.cookie, **headers)

    def post(self, body: bytes, name: str = "stop", /, **headers: str) -> Answer:
        given = {"origin": f"http://{HOST}", "cookie": self.cookie, **headers}
        return ask(self.server, f"{self.server.prefix}/{name}", "POST", body, **given)


def open_site(*paths: Path) -> Site:
    watched = Watched(paths, {"engine": "animatic"})
    server = WatchServer(watched)
    answer = ask(server, f"{server.prefix}/?token={server.token}")
    assert (answer.status, answer.headers["location"]) == (303, f"{server.prefix}/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert f"Path={server.prefix}/" in cookie
    assert server.token not in cookie
    return Site(server, watched, cookie.partition(";")[0])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the first test renders, so that the others can copy it."""
    return tmp_path_factory.mktemp("rendered") / "copy"


@pytest.fixture
def site(write_board: Write, svi_story: Run, rendered: Path) -> Site:
    """A board with its film, and another one that is not watched."""
    board = write_board()
    write_board("other/secret.yaml", reference="../anchor.png")
    if not rendered.exists():
        assert svi_story("render", board, "--engine", "animatic").code == 0
        shutil.copytree("renders", rendered, copy_function=shutil.copy2)
    shutil.copytree(rendered, "renders", dirs_exist_ok=True)
    found = open_site(board)
    found.watched.refresh()
    return found


def log_of_a_run(cache: Path, *some: Event) -> Path:
    """The folder of a run of this process that is under way."""
    host, namespace, ours, started = runs._this_process()
    opened = events.RunOpened(host, namespace, ours, started, Path.cwd(), ("render",), "1")
    run = cache / f"runs/20990101-000000-{len(list(cache.glob('runs/*'))):06x}"
    run.mkdir(parents=True)
    (run / "control").mkdir(mode=0o700)
    lines = ({"time": time.time(), "run": run.name, **as_json(event)} for event in (opened, *some))
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return run


def started(board: str, film: str = "renders/board.mp4") -> list[Event]:
    path = Path(board)
    return [
        events.RunStarted(1, 3),
        events.BoardStarted(path, Path(film), 3, 3, 1),
        events.SegmentStarted(path, "clip-02", 0, "k", 13),
        events.StepDone(path, "clip-02", 0, 3, 8),
    ]


def test_boards_of_the_same_name_are_told_apart(write_board: Write) -> None:
    write_board("anchor.yaml")  # which draws the anchor, too
    boards = [write_board(name, reference="../anchor.png") for name in ("a/board.yaml", "b/board.yaml")]
    state = open_site(*boards, Path("anchor.yaml")).watched.refresh()
    assert [board["name"] for board in state["boards"]] == [*map(str, boards), "anchor.yaml"]


def test_boards_clips_and_films_are_shown(site: Site) -> None:
    state = site.watched.refresh()
    (board,) = state["boards"]
    assert (board["name"], board["state"], board["finished"]) == ("board.yaml", "done", 3)
    assert [clip["parts"] for clip in board["clips"]] == [1, 1, 1]
    assert [run["state"] for run in state["runs"]] == ["done"]
    film = site.get("media/0/film")
    assert (film.status, film.headers["content-type"]) == (200, "video/mp4")
    assert film.body == Path("renders/board.mp4").read_bytes()
    part = site.get("media/0/film", range="bytes=10-19")
    assert (part.status, part.body) == (206, film.body[10:20])
    assert b"ftyp" in site.get("media/0/clip/2/0").body


def test_a_running_render_is_shown_dies_and_another_one_takes_over(site: Site) -> None:
    cache = Path("renders/.cache")
    run = log_of_a_run(cache, *started("board.yaml"))
    live_preview(Path("renders/board.mp4")).write_bytes(b"RIFF")
    newest = site.watched.refresh()["runs"][0]
    assert (newest["state"], newest["current"], newest["clip"]) == ("running", 0, "clip-02")
    assert (newest["step"], newest["steps"]) == (3, 8)
    assert site.watched.refresh()["boards"][0]["live"]
    assert site.get("media/0/live").headers["content-type"] == "image/webp"
    path = run / "events.jsonl"
    text = path.read_text("utf-8").replace(f'"process": {os.getpid()}', '"process": 4194399')
    path.write_text(text, "utf-8")
    again = open_site(Path("board.yaml"))
    assert again.watched.refresh()["runs"][0]["state"] == "died"
    log_of_a_run(cache, *started("board.yaml"))
    assert [each["state"] for each in again.watched.refresh()["runs"]][:2] == ["running", "died"]


def test_runs_of_other_boards_are_not_shown_and_mixed_ones_only_in_part(site: Site) -> None:
    cache = Path("renders/.cache")
    run = log_of_a_run(cache, *started("other/secret.yaml"))
    assert all("secret" not in json.dumps(each) for each in site.watched.refresh()["runs"])
    assert site.post(json.dumps({"run": run.name, "stop": "now"}).encode()).status == 404
    log_of_a_run(cache, *started("board.yaml"), *started("other/secret.yaml"), events.Warned("secret words"))
    newest = site.watched.refresh()["runs"][0]
    assert newest["boards"] == [0]
    assert "secret" not in json.dumps(newest)


def test_two_renders_and_a_run_of_ray_are_shown_at_the_same_time(site: Site, write_board: Write) -> None:
    write_board("second.yaml", seed=7)
    write_board("third.yaml", seed=8)
    cache, third = Path("renders/.cache"), Path("third.yaml")
    workers = [events.WorkerStarted(1, "gpu-1", 11), events.WorkerStarted(2, "gpu-2", 12)]
    steps = [events.StepDone(third, clip, 0, step, 8) for clip, step in (("clip-01", 2), ("clip-03", 5))]
    log_of_a_run(cache, *started("board.yaml"))
    log_of_a_run(cache, *started("second.yaml", "renders/second.mp4"))
    log_of_a_run(cache, *started("third.yaml", "renders/third.mp4"), *workers, *steps)
    state = open_site(Path("board.yaml"), Path("second.yaml"), third).watched.refresh()
    active = [run for run in state["runs"] if run["state"] == "running"]
    assert [run["boards"] for run in active] == [[2], [1], [0]]
    assert [run["workers"] for run in active] == [2, 0, 0]
    assert active[0]["now"] == "2 workers: clip-01 step 2/8; clip-03 step 5/8"
    assert active[1]["now"].startswith("sampling clip clip-02 (step 3/8")
    cells = [clip["state"] for clip in state["boards"][2]["clips"]]
    assert cells == ["sampling", "sampling", "sampling"]  # clip 2 is another one that Ray renders


def test_a_stop_is_requested(site: Site) -> None:
    run = log_of_a_run(Path("renders/.cache"), *started("board.yaml"))
    site.watched.refresh()
    assert site.post(json.dumps({"run": run.name, "stop": "clip"}).encode()).status == 204
    assert runs.requested_stop(run) == "clip"
    assert site.watched.refresh()["runs"][0]["stopping"]
    assert site.post(json.dumps({"run": run.name, "stop": "now"}).encode()).status == 204
    assert runs.requested_stop(run) == "now"
    shutil.rmtree(run / "control")
    assert site.post(json.dumps({"run": run.name, "stop": "now"}).encode()).status == 409


ODD = (b"", b"[]", b"{}", b"\xff", b"[" * 900, b'{"run": 3, "stop": "now"}', b'{"run": "x", "stop": "rm"}')


def test_odd_requests_to_stop_are_refused(site: Site) -> None:
    assert [site.post(body).status for body in ODD] == [400] * len(ODD)
    assert site.post(b"x" * 20_000).status == 413


def test_every_answer_forbids_what_a_page_does_not_need(site: Site) -> None:
    for name in ("", "page.css", "page.js"):
        answer = site.get(name)
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert b"http:" not in answer.body
        assert b"https:" not in answer.body


def test_without_the_token_nothing_is_read(site: Site) -> None:
    for path in ("", "events", "page.js", "media/0/film", "media/0/live", "stop"):
        for cookie in ("", f"{COOKIE}=guess", f"{COOKIE}=", "other=1", f"{COOKIE}=é"):
            answer = ask(site.server, f"{site.server.prefix}/{path}", cookie=cookie)
            assert (answer.status, b"token" in answer.body) == (401, True)


def test_the_token_is_neither_guessed_nor_accepted_elsewhere(site: Site) -> None:
    server = site.server
    for token in ("", "x", server.token[:-1], server.token + "x", "%00", "%C3%A9"):
        assert ask(server, f"{server.prefix}/?token={token}").status == 401
    assert ask(server, f"/?token={server.token}").status == 404
    assert ask(server, "/", cookie=site.cookie).status == 404
    assert ask(server, f"{server.prefix}/stop?token={server.token}", "POST", b"{}").status == 401
    assert len(server.token) >= 40


OURS = (HOST, "localhost:9000", "[::1]:8765", "LOCALHOST", "10.0.0.7:8765")
FORGED = (
    *("evil.example", "evil.example:8765", "localhost.evil.example", "", "127.0.0.1.evil.example"),
    *("localhost@evil", "localhost:8765/x", "[::1", "localhost:8765:1", "127.0.0.1 evil"),
)


def test_names_that_dns_can_forge_are_refused(site: Site) -> None:
    assert [site.get("", host=host).status for host in OURS] == [200] * len(OURS)
    assert [site.get("", host=host).status for host in FORGED] == [400] * len(FORGED)


def test_a_name_that_was_given_is_accepted() -> None:
    server = WatchServer(Watched((), {}), ("gpu.example",))
    assert ask(server, f"{server.prefix}/?token={server.token}", host="gpu.example:8765").status == 303


FOREIGN: tuple[dict[str, str], ...] = (
    *({"origin": ""}, {"origin": "null"}, {"origin": "http://evil.example"}, {"origin": f"https://{HOST}"}),
    *({"origin": "http://127.0.0.1:9999"}, {"origin": f"http://{HOST}.evil.example"}),
    *({"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"}),
)


def test_other_sites_cannot_post(site: Site) -> None:
    run = log_of_a_run(Path("renders/.cache"), *started("board.yaml"))
    site.watched.refresh()
    body = json.dumps({"run": run.name, "stop": "now"}).encode()
    assert [site.post(body, **headers).status for headers in FOREIGN] == [403] * len(FOREIGN)
    assert runs.requested_stop(run) is None
    assert site.get("stop").status == 405


NOWHERE = (
    *(
        "media/0/../../board.yaml",
        "media/0/%2e%2e",
        "media/1/film",
        "media/-1/film",
        "media/99999999999/film",
    ),
    *("media/0/record", "media/0/clip/0/9", "media/0/clip/99/0", "media/0/clip/-1/0", "media/0/clip/0/-1"),
    *("../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "page.html", "server.py", "events/x", "media/0/film/x"),
)


def test_nothing_else_is_served(site: Site) -> None:
    assert [path for path in NOWHERE if site.get(path).status != 404] == []


def test_links_are_not_followed(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret", "utf-8")
    for path in (Path("renders/board.mp4"), live_preview(Path("renders/board.mp4"))):
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
    os.mkfifo("renders/board.partial.mp4")
    for kind in ("film", "live", "partial"):
        assert site.get(f"media/0/{kind}").status == 404


def test_words_of_strangers_are_no_markup(write_board: Write) -> None:
    words = "</script><img src=x onerror=alert(1)>"
    board = write_board(title=words, clips=[{"prompt": words}])
    state = open_site(board).watched.refresh()
    assert state["boards"][0]["clips"][0]["prompt"].startswith(words[:20])
    page = Path(server_module.__file__).parent / "page/page.js"
    assert "innerHTML" not in page.read_text("utf-8")
    assert "insertAdjacentHTML" not in page.read_text("utf-8")


def test_a_board_that_is_broken_or_changes_is_shown_as_it_is(write_board: Write) -> None:
    board = write_board(clips=[])
    watched = open_site(board).watched
    (rejected,) = watched.refresh()["rejected"]
    assert "clips" in rejected["problems"][0]
    os.utime(write_board(), (1, 1))
    state = watched.refresh()
    assert (len(state["boards"]), state["rejected"]) == (1, [])
    assert state["boards"][0]["state"] == "waiting"


def test_a_read_only_cache_is_watched(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    for name in ("mkdir", "rename", "replace", "link"):
        monkeypatch.setattr(os, name, refuse)
    watched = open_site(Path("board.yaml")).watched
    assert watched.refresh()["boards"][0]["finished"] == 3


def test_streams_send_the_newest_state_and_end_with_slow_clients(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(server_module, "POLL", 0.05)
    server = site.server
    seen: list[bytes] = []

    async def watch() -> None:
        async def read(message: Any) -> None:
            seen.append(message.get("body", b""))

        async def never(_message: Any) -> None:
            await asyncio.sleep(3600)

        async def wait() -> Any:
            await asyncio.sleep(3600)

        scope = {
            "type": "http",
            "method": "GET",
            "path": f"{server.prefix}/events",
            "query_string": b"",
            "headers": [(b"host", HOST.encode()), (b"cookie", site.cookie.encode())],
        }
        scope |= {"root_path": "", "scheme": "http", "server": ("127.0.0.1", 8765)}
        async with server._lifespan(server._app):
            slow = [asyncio.create_task(server(dict(scope), wait, never)) for _ in range(100)]
            await asyncio.wait_for(asyncio.gather(*slow), 30)
            assert server._streams == 0
            fast = asyncio.create_task(server(dict(scope), wait, read))
            while b"event: runs" not in b"".join(seen):
                await asyncio.sleep(0.02)
            log_of_a_run(Path("renders/.cache"), *started("board.yaml"))
            while b'"running"' not in b"".join(seen):
                await asyncio.sleep(0.02)
            await server.close()
            await asyncio.wait_for(fast, 30)

    asyncio.run(asyncio.wait_for(watch(), 60))
    text = b"".join(seen).decode()
    boards = json.loads(text.partition("event: boards\ndata: ")[2].partition("\n")[0])
    assert boards["boards"][0]["name"] == "board.yaml"


def test_a_huge_log_of_somebody_else_is_read_in_bounds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LARGEST", 50_000)
    run = log_of_a_run(Path("renders/.cache"), *started("board.yaml"))
    with (run / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "warned", "message": "x", "time": 1}\n' * 100_000)
    assert site.watched.refresh()["runs"][0]["state"] == "running"


def test_forty_boards_are_looked_at_quickly(write_board: Write) -> None:
    for number in range(40):
        write_board(f"boards/{number:02}.yaml", reference="../anchor.png", seed=number)
    first = [events.RunStarted(40, 120), *started("boards/00.yaml", "boards/renders/00.mp4")[1:]]
    refused = [events.BoardRefused(Path(f"boards/{number:02}.yaml"), ("no",)) for number in range(1, 40)]
    log_of_a_run(Path("boards/renders/.cache"), *first, *refused)
    watched = open_site(Path("boards")).watched
    watched.refresh()
    start = time.monotonic()
    state = watched.refresh()
    assert len(state["boards"]) == 40
    (run,) = state["runs"]
    assert (len(run["boards"]), run["current"], run["segments"]) == (40, 0, 120)
    assert [each["state"] for each in state["boards"][:3]] == ["rendering", "refused", "refused"]
    assert len(json.dumps(state)) < 200_000
    assert time.monotonic() - start < 30
