"""A hub on this machine: the endpoints that huggingface_hub really calls, the tiny weights, and faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = Path(__file__).parent / "data" / "svi" / "models"
WAN = "Wan-AI/Wan2.2-I2V-A14B"
CONVERTED = "DiffSynth-Studio/Wan-Series-Converted-Safetensors"
TOKENIZER = "Wan-AI/Wan2.1-T2V-1.3B"
SVI = "vita-video-gen/svi-model"
LIGHTX2V = "lightx2v/Wan2.2-Lightning"
DISTILL = "Wan2.2-I2V-A14B-4steps-lora-rank64-Seko-V1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the hub has, how it fails, and what it was asked for."""

    repos: dict[str, dict[str, bytes]]
    licences: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    token: str = ""
    """The only token that is taken; none is asked for but by gated repositories."""
    cut: dict[str, int] = field(default_factory=dict)
    """File names whose body breaks off after so many bytes, each time."""
    stop: dict[str, int] = field(default_factory=dict)
    """File names whose body never goes on after so many bytes."""
    short: set[str] = field(default_factory=set)
    """File names that are announced and sent a byte shorter than they are listed."""
    wrong: set[str] = field(default_factory=set)
    """File names that are sent with another content of the same size."""
    status: dict[str, int] = field(default_factory=dict)
    """File names, or repositories, that are answered with an error."""
    no_ranges: bool = False
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, file or repository, range) of each request."""
    url: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)

    def reads(self) -> list[str]:
        """The files whose content was asked for, in order."""
        return [name for method, name, _ in self.asked if method == "GET" and name not in self.repos]

    def ranges(self, name: str) -> list[str]:
        """The ranges of a file that were asked for."""
        return [span for method, asked, span in self.asked if method == "GET" and asked.endswith(name)]


def tiny_hub() -> FakeHub:
    """The tiny weights as the repositories of the real ones, and what lies beside them there."""

    def files(folder: str) -> dict[str, bytes]:
        root = MODELS / folder
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    loras = files("Stable-Video-Infinity")
    pair = {e: f"version-2.0/SVI_Wan2.2-I2V-A14B_{e}_noise_lora_v2.0.safetensors" for e in ("high", "low")}
    big = {"models_t5_umt5-xxl-enc-bf16.pth": b"pickle", "Wan2.1_VAE.pth": b"pickle"}
    return FakeHub(
        {
            WAN: files(WAN) | big | {"README.md": b"Wan", "high_noise_model/README.md": b"no weights"},
            CONVERTED: files(CONVERTED) | {"other.safetensors": b"not asked for"},
            TOKENIZER: files(TOKENIZER) | {"google/umt5-xxl/spiece.model": b"pieces"} | big,
            SVI: loras | {"version-1.0/svi-film.safetensors": b"old", "README.md": b"SVI"},
            LIGHTX2V: {f"{DISTILL}/{e}_noise_model.safetensors": loras[name] for e, name in pair.items()},
        },
        licences={WAN: "apache-2.0", SVI: "mit"},
    )


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Metadata of a file."""
        self.answer()

    def do_GET(self) -> None:
        """A repository's description, or a file."""
        self.answer()

    def answer(self) -> None:
        """Route one request as the hub does."""
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/\w+)?", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path)
        cdn = re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path)
        match = api or resolve or cdn
        if match is None:
            self.fail(404, "EntryNotFound")
            return
        repo, name = match[1], "" if api else match[2]
        self.hub.asked.append((self.command, name or repo, self.headers.get("Range", "")))
        error = None if cdn else self.refusal(repo, name)
        if repo in self.hub.renamed:
            self.send(307, {"Location": self.path.replace(repo, self.hub.renamed[repo])})
        elif error:
            self.fail(*error)
        elif api:
            self.describe(repo)
        elif cdn:
            self.content(self.hub.repos[repo][name], name)
        else:
            self.resolve(repo, name)

    def refusal(self, repo: str, name: str) -> tuple[int, str] | None:
        """Why this may not be read."""
        authorization = self.headers.get("Authorization", "")
        if authorization and authorization != f"Bearer {self.hub.token}":
            return 401, ""
        if repo not in self.hub.repos:
            return 401, "RepoNotFound"
        if name and repo in self.hub.gated and not authorization:
            return 401, "GatedRepo"
        if name and name not in self.hub.repos[repo]:
            return 404, "EntryNotFound"
        for key in (name, repo):
            if key in self.hub.status:
                return self.hub.status[key], ""
        return None

    def describe(self, repo: str) -> None:
        """The model info with the files' sizes."""
        licence = self.hub.licences.get(repo)
        info: dict[str, Any] = {
            "id": repo,
            "sha": COMMIT,
            "siblings": [listed(name, data) for name, data in self.hub.repos[repo].items()],
            "cardData": {"license": licence} if licence else None,
            "gated": "auto" if repo in self.hub.gated else False,
        }
        self.send(200, {"Content-Type": "application/json"}, json.dumps(info).encode())

    def resolve(self, repo: str, name: str) -> None:
        """A file: LFS ones lie elsewhere, small ones here."""
        data = self.hub.repos[repo][name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git_hash(data)}"'}
        if is_lfs(name):
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            more = {"Location": f"/cdn/{repo}/{name}", "X-Linked-Size": str(len(data)), "X-Linked-Etag": etag}
            self.send(302, headers | more)
        else:
            self.content(data, name, headers)

    def content(self, data: bytes, name: str, headers: dict[str, str] | None = None) -> None:
        """The bytes, with what is wrong with them."""
        hub = self.hub
        if name in hub.wrong:
            data = bytes(byte ^ 1 for byte in data)
        if name in hub.short:
            data = data[:-1]
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(span[1]) if span and not hub.no_ranges else 0
        if span and start >= len(data):
            self.fail(416, "")
            return
        total = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.send(206 if start else 200, {**(headers or {}), **total}, data[start:], name)

    def send(self, status: int, headers: dict[str, str], body: bytes = b"", name: str = "") -> None:
        """One answer."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = min(self.hub.cut.get(name, len(body)), self.hub.stop.get(name, len(body)))
        self.wfile.write(body[:limit])
        self.wfile.flush()
        if name in self.hub.stop and limit < len(body):
            self.hub.stopped.set()
            threading.Event().wait(600)
        self.close_connection = limit < len(body)

    def fail(self, status: int, code: str) -> None:
        """An error as the hub tells it."""
        message = "Invalid credentials in Authorization header" if status == 401 and not code else "no"
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.send(status, headers)


def listed(name: str, data: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
    if is_lfs(name):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def is_lfs(name: str) -> bool:
    """Whether the hub keeps a file outside of git."""
    return name.endswith((".safetensors", ".pth", ".model"))


def git_hash(data: bytes) -> str:
    """What git calls a content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """Says nothing of clients that leave early, and waits for none."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Whoever left knows why."""


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub, answering on the loopback interface."""
    handler = type("ThisHub", (Handler,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
