"""The server of `svi-story watch`: a page, its state as server-sent events, media, requests to stop or pick.

It runs in a process of its own, and a render knows nothing of it. Whoever reads needs the token. All paths
begin with a random prefix, to which the cookie is bound: other servers on the same host, of other users, on
other ports, do not get it from a browser.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import secrets
import socket
import time
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from svi_story.errors import StoryError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Message, Receive, Scope, Send

    from svi_story.watch.state import Json, Watched

COOKIE = "svi-story"
POLL = 1.0
"""Seconds between two looks at the runs."""
REST = 3
"""How much longer than a look the pause after it is, if that is more than POLL: renders need the CPU."""
ALIVE = 15.0
"""Seconds between two keep-alive events on a quiet stream."""
SEND_SECONDS = 30.0
"""A client that takes longer to receive data is disconnected."""
REQUEST_SECONDS = 15.0
"""A client that takes longer to send its request is disconnected."""
STREAMS = 64
MEDIA = 32
"""Streams and files that are sent at a time."""
CONNECTIONS = 400
LARGEST_REQUEST = 2**14
"""Bytes of the body of a POST request."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
PAGE = {
    "": ("index.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
UNKNOWN_NAME = (
    "svi-story watch does not know this name of the machine: use its address, or add the name to `names` "
    "under [watch] in your svi-story.toml.\n"
)
NOT_UNDERSTOOD = HTTPException(400, "not understood\n")
NO_ACCESS = "This page needs the token: open the address that `svi-story watch` printed.\n"


class WatchServer:
    """The application, with its secrets."""

    def __init__(self, watched: Watched, names: tuple[str, ...] = ()) -> None:
        self._watched = watched
        self._names = {"localhost", *(name.lower() for name in names)}
        """Names by which a browser may call this server, besides addresses."""
        self.token = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)
        """What the cookie holds."""
        self.prefix = f"/{secrets.token_hex(8)}"
        self._state: dict[str, str] = {}
        """The newest JSON of each part of the page."""
        self._changed = asyncio.Condition()
        self._closing = False
        self._streams = 0
        self._media = 0
        self._lock = asyncio.Lock()
        """One look at the boards at a time."""
        self._drawing = asyncio.Lock()
        """One animation is made at a time."""
        routes = [
            *(Route(f"{self.prefix}/{name}", self._page) for name in PAGE),
            Route(f"{self.prefix}/events", self._events),
            Route(f"{self.prefix}/stop", self._stop, methods=["POST"]),
            Route(f"{self.prefix}/pick", self._pick, methods=["POST"]),
            Route(
                f"{self.prefix}/media/{{board:int}}/take/{{clip:int}}/{{take:int}}/{{kind:str}}", self._take
            ),
            Route(f"{self.prefix}/media/{{board:int}}/{{kind:str}}", self._file),
            Route(f"{self.prefix}/media/{{board:int}}/clip/{{clip:int}}/{{part:int}}", self._file),
        ]
        self._app = Starlette(routes=routes, lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                extra = [
                    (n.lower().encode(), v.encode())
                    for n, v in HEADERS.items()
                    if n.lower().encode() not in given
                ]
                message["headers"] = [*message["headers"], *extra]
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        with suppress(TimeoutError, OSError):
            if scope["type"] != "http":
                return
            refused = self._refusal(Request(scope))
            await (refused or self._app)(scope, receive, send_in_time)

    def _refusal(self, request: Request) -> Response | None:
        """The response to a request that is not allowed; None if it is."""
        if not self._is_ours(request.headers.getlist("host")):
            return PlainTextResponse(UNKNOWN_NAME, 400)
        if not request.url.path.startswith(f"{self.prefix}/"):
            return PlainTextResponse(NO_ACCESS, 404)
        given = request.query_params.get("token")
        if given is not None and request.method == "GET":
            return self._log_in(given)
        cookie = request.cookies.get(COOKIE, "")
        if not secrets.compare_digest(cookie.encode(), self._session.encode()):
            return PlainTextResponse(NO_ACCESS, 401)
        if request.method not in ("GET", "HEAD") and not _is_same_origin(request):
            return PlainTextResponse("wrong origin\n", 403)
        return None

    def _log_in(self, token: str) -> Response:
        """Move the token from the address into a cookie."""
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            return PlainTextResponse(NO_ACCESS, 401)
        response = RedirectResponse(f"{self.prefix}/", 303)
        path = f"{self.prefix}/"
        response.set_cookie(COOKIE, self._session, path=path, httponly=True, samesite="strict")
        return response

    def _is_ours(self, hosts: list[str]) -> bool:
        """Whether the Host header names this server: an address, which DNS cannot forge, or a known name."""
        if len(hosts) != 1:
            return False
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(:\d{1,5})?", hosts[0])
        if not found:
            return False
        name = found[1].strip("[]").lower()
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name in self._names

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._look())
        try:
            yield
        finally:
            task.cancel()

    async def _look(self) -> None:
        """Read the state of boards and runs while a page is open, and publish changes to the streams."""
        while True:
            start = time.monotonic()
            if self._streams:
                async with self._lock:
                    found = await anyio.to_thread.run_sync(self._refresh)
                await self._publish(found)
            await asyncio.sleep(max(POLL, REST * (time.monotonic() - start)))

    def _refresh(self) -> Json:
        try:
            return self._watched.refresh()
        except Exception as error:  # noqa: BLE001 - the page says so, and looks again
            what = f"cannot look at the boards: {type(error).__name__}: {error}"
            return {"boards": [], "rejected": [], "problems": [what], "runs": []}

    async def _publish(self, found: Json) -> None:
        boards = {name: found[name] for name in ("boards", "rejected", "problems")}
        state = {"boards": json.dumps(boards), "runs": json.dumps(found["runs"])}
        if state != self._state:
            async with self._changed:
                self._state = state
                self._changed.notify_all()

    async def _page(self, request: Request) -> Response:
        name, kind = PAGE[request.url.path.removeprefix(f"{self.prefix}/")]
        text = files("svi_story.watch").joinpath("page", name).read_text("utf-8")
        return Response(text, media_type=kind)

    async def _events(self, _request: Request) -> Response:
        if self._streams >= STREAMS:
            return PlainTextResponse("too many pages are open\n", 503)
        return _Stream(self)

    async def stream(self, send: Send) -> None:
        """Send every change of the state; a slow client gets the newest one, and misses those between."""
        sent: dict[str, str] = {}
        self._streams += 1
        try:
            while not self._closing:
                clock = f"retry: 2000\nevent: clock\ndata: {time.time()}\n\n".encode()
                await send({"type": "http.response.body", "body": clock, "more_body": True})
                changed = {name: text for name, text in self._state.items() if sent.get(name) != text}
                for name, text in changed.items():
                    body = f"event: {name}\ndata: {text}\n\n".encode()
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                sent |= changed
                if not changed:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(ALIVE), self._changed:
                            if self._state.items() <= sent.items() and not self._closing:
                                await self._changed.wait()
        finally:
            self._streams -= 1

    async def close(self) -> None:
        """End all streams."""
        async with self._changed:
            self._closing = True
            self._changed.notify_all()

    async def _posted(self, request: Request) -> dict[str, Any]:
        """The JSON object that was posted. Raises HTTPException."""
        body = b""
        async with asyncio.timeout(REQUEST_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST_REQUEST:
                    raise HTTPException(413, "too long\n")
        with suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(body), dict):
                return found
        raise NOT_UNDERSTOOD

    async def _stop(self, request: Request) -> Response:
        posted = await self._posted(request)
        run, kind = posted.get("run"), posted.get("stop")
        if not isinstance(run, str) or kind not in ("clip", "now"):
            raise NOT_UNDERSTOOD
        return await self._ask(self._watched.stop, run, kind)

    async def _pick(self, request: Request) -> Response:
        posted = await self._posted(request)
        about = [posted.get(name) for name in ("path", "digest", "clip", "take")]
        if [type(each) for each in about] != [str, str, str, int]:
            raise NOT_UNDERSTOOD
        return await self._ask(self._watched.pick, *about)

    async def _ask(self, ask: Callable[..., bool], *about: object) -> Response:
        """The answer to a request that may be refused with a reason, or be about nothing that is there."""
        try:
            async with self._lock:
                found = await anyio.to_thread.run_sync(ask, *about)
        except StoryError as error:
            return PlainTextResponse(f"{error}\n", 409)
        return PlainTextResponse("", 204) if found else PlainTextResponse("not there\n", 404)

    async def _take(self, request: Request) -> Response:
        about = request.path_params
        async with self._drawing:
            found = await anyio.to_thread.run_sync(
                self._watched.take, about["board"], about["clip"], about["take"], about["kind"]
            )
        return Response(found, media_type="image/webp") if found else PlainTextResponse("not there\n", 404)

    async def _file(self, request: Request) -> Response:
        about = request.path_params
        path = self._watched.media(
            about["board"], about.get("kind", "clip"), about.get("clip", 0), about.get("part", 0)
        )
        if path is None:
            return PlainTextResponse("not there\n", 404)
        if self._media >= MEDIA:
            return PlainTextResponse("too many files are being sent\n", 503)
        kind = "image/webp" if path.suffix == ".webp" else "video/mp4"
        return _Media(self, path, kind)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Count a file that is being sent."""
        self._media += 1
        try:
            yield
        finally:
            self._media -= 1


class _Stream(Response):
    """Server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, server: WatchServer) -> None:
        super().__init__()
        self._server = server

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the client leaves."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        stream = asyncio.ensure_future(self._server.stream(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((stream, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            stream.cancel()
            with suppress(asyncio.CancelledError, TimeoutError, OSError):
                await stream


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Media(FileResponse):
    """A film or a picture, or a part of it."""

    def __init__(self, server: WatchServer, path: Any, kind: str) -> None:
        super().__init__(path, media_type=kind, content_disposition_type="inline")
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; it may be replaced or removed meanwhile."""
        async with self._server.sending():
            with suppress(RuntimeError):
                await super().__call__(scope, receive, send)


def _is_same_origin(request: Request) -> bool:
    """Whether a request comes from a page of this server."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    return site == "same-origin" and request.headers.get("origin") == f"http://{request.headers['host']}"


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. OSError; TypeError and UnicodeError for what can be no host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(128)
    except (OSError, TypeError, UnicodeError):
        found.close()
        raise
    return found


def serve(server: WatchServer, listening: socket.socket) -> None:
    """Serve until the program is interrupted."""
    import uvicorn

    config = uvicorn.Config(
        server,
        log_level="critical",
        access_log=False,
        http="h11",
        ws="none",
        lifespan="on",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=2**14,
        server_header=False,
        proxy_headers=False,
    )
    running = uvicorn.Server(config)

    async def run() -> None:
        tasks = [
            asyncio.create_task(_cut_off_silent_clients(running)),
            asyncio.create_task(_close_at_exit(running, server)),
        ]
        try:
            await running.serve(sockets=[listening])
        finally:
            for task in tasks:
                task.cancel()

    asyncio.run(run())


async def _close_at_exit(running: Any, server: WatchServer) -> None:
    """End the streams when the program is interrupted: uvicorn waits for them."""
    while not running.should_exit:
        await asyncio.sleep(0.2)
    await server.close()


async def _cut_off_silent_clients(running: Any) -> None:
    """End connections that do not send a whole request, or do not read the rest of an answer.

    uvicorn waits for both for ever.
    """
    since: dict[tuple[Any, Any], float] = {}
    while True:
        await asyncio.sleep(REQUEST_SECONDS / 5)
        now = time.monotonic()
        found = [(each, getattr(each, "cycle", None)) for each in running.server_state.connections]
        waiting = [
            (each, cycle)
            for each, cycle in found
            if cycle is None or cycle.response_complete or each.transport.is_closing()
        ]
        since = {pair: since.get(pair, now) for pair in waiting}
        for (each, _), first in since.items():
            if now - first > REQUEST_SECONDS:
                each.transport.abort()
