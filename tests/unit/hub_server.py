"""A stand-in for a model hub on loopback: as much of its interface as a fetch uses.

Ranges, answers that are cut in the middle, and the hub's own ways of saying no (its headers
``X-Error-Code`` and ``X-Error-Message``) are there as the real one has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"


@dataclass
class Repository:
    """One model on the hub.

    ``large`` are the files that the hub keeps by SHA-256; ``token`` is what has to be shown,
    ``gated`` whether the one who shows it has been let in.
    """

    files: dict[str, bytes]
    large: tuple[str, ...] = ("model.safetensors",)
    token: str = ""
    gated: bool = False


@dataclass
class Hub:
    """All models, and how the hub misbehaves.

    ``cuts`` are the numbers of bytes after which an answer with a large file breaks off, one for
    each answer; ``ranges`` is whether it knows them; ``wrong`` whether it sends other bytes.
    """

    models: dict[str, Repository] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    wrong: bool = False
    busy: int = 0
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def fetched(self, name: str) -> list[str]:
        """The ranges with which a file was asked for; empty for all of it."""
        return [r for method, path, r in self.asked if method == "GET" and path.endswith(name)]


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_args: object) -> None:
        """Nothing on the screen."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.busy:
            self.hub.busy -= 1
            self._say(503, {"error": "busy"})
            return
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models/" if api else "/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        model = self.hub.models.get(name)
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if model is None or (model.token and not model.gated and shown != model.token):
            self._say(401, {"error": "Invalid username or password."}, code="RepoNotFound")
        elif (
            rest and rest[0] in ("revision", "resolve", "tree") and rest[1] not in ("main", COMMIT)
        ):
            self._say(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
        elif api and rest[:1] == ["tree"]:
            self._say(200, [_entry(model, file) for file in sorted(model.files)])
        elif api:
            siblings = [_sibling(model, file) for file in sorted(model.files)]
            self._say(200, {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings})
        elif model.gated and shown != model.token:
            message = f"Access to model {name} is restricted."
            self._say(403, {"error": message}, code="GatedRepo")
        elif rest[0] == "resolve" and "/".join(rest[2:]) in model.files:
            self._file(model, "/".join(rest[2:]))
        else:
            self._say(404, {"error": "Entry not found"}, code="EntryNotFound")

    def _say(self, status: int, value: Any, code: str = "") -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", str(value["error"]))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _file(self, model: Repository, file: str) -> None:
        content = model.files[file]
        large = file in model.large
        digest = hashlib.sha256(content).hexdigest()
        asked = self.headers.get("Range", "") if self.hub.ranges else ""
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = content[start:]
        if self.hub.wrong and large:
            body = bytes(len(body))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest if large else _blob_id(content)}"')
        if large:
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            if large and self.hub.cuts:
                self.wfile.write(body[: self.hub.cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.wfile.write(body)


def _blob_id(content: bytes) -> str:
    """What names a small file: git's way has forty hex digits."""
    return hashlib.sha256(content).hexdigest()[:40]


def _sibling(model: Repository, file: str) -> dict[str, Any]:
    entry = _entry(model, file)
    found = {"rfilename": file, "size": entry["size"], "blobId": entry["oid"]}
    if "lfs" in entry:
        lfs = entry["lfs"]
        found["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}
    return found


def _entry(model: Repository, file: str) -> dict[str, Any]:
    content = model.files[file]
    entry: dict[str, Any] = {
        "type": "file",
        "path": file,
        "size": len(content),
        "oid": _blob_id(content),
    }
    if file in model.large:
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub on loopback, for as long as the body runs."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
