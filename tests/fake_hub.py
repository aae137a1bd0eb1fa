"""A hub of models on this machine: what the client asks, answered as the real one does."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

TOKEN = "hf_secret"
"""Of an account that may read and write everything but what is gated."""


@dataclass
class FakeHub:
    """The repositories of a hub.

    Args:
        models: by id, the files of a model.
        private: those that only the account sees.
        gated: those that everybody sees and nobody may read.
        asked: the files that were downloaded.
    """

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path) -> None:
        """A model with the files of a folder."""
        self.models[name] = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def commit(self, name: str) -> str:
        """The hash of what a model holds now."""
        return hashlib.sha1(repr(sorted(self.models[name].items())).encode()).hexdigest()


class _Refusal(Exception):
    """A status and the code that the client reads."""

    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, make: Any) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path).strip("/")
        try:
            content, headers = make(path, body) if self.command == "POST" else make(path)
            status = 200
        except _Refusal as refusal:
            content, headers, status = b"{}", {"X-Error-Code": refusal.code}, refusal.status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _account(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _files(self, name: str, revision: str, *, content: bool) -> dict[str, bytes]:
        hub = self.hub
        if name not in hub.models or (name in hub.private and not self._account()):
            raise _Refusal(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        if content and name in hub.gated:
            raise _Refusal(403, "GatedRepo")
        if revision not in ("main", hub.commit(name)):
            raise _Refusal(404, "RevisionNotFound")
        return hub.models[name]

    def _get(self, path: str) -> tuple[bytes, dict[str, str]]:
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            name, what, revision = "/".join(parts[2:4]), *(parts[4:6] or ["revision", "main"])
            files = self._files(name, revision, content=False)
            if what == "revision":
                siblings = [{"rfilename": file} for file in files]
                told: Any = {"id": name, "sha": self.hub.commit(name), "siblings": siblings}
            elif parts[6:]:
                raise _Refusal(404, "EntryNotFound")
            else:
                told = [
                    {"type": "file", "path": file, "size": len(body), "oid": _digest(body)}
                    for file, body in files.items()
                ]
            return json.dumps(told).encode(), {"Content-Type": "application/json"}
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        files = self._files(name, revision, content=True)
        headers = {"X-Repo-Commit": self.hub.commit(name)}
        if file not in files:
            raise _Refusal(404, "EntryNotFound")
        if self.command == "GET":
            self.hub.asked.append(file)
        return files[file], headers | {"ETag": f'"{_digest(files[file])}"'}

    def _post(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if not self._account():
            raise _Refusal(401, "")
        parts = path.split("/")
        if path == "api/repos/create":
            told = json.loads(body)
            name = f"{told.get('organization') or 'me'}/{told['name']}"
            if not name.startswith("me/"):
                raise _Refusal(403, "")
            self.hub.models.setdefault(name, {".gitattributes": b""})
            answer: Any = {"url": self._url(name), "name": name, "id": name}
        elif path == "api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif parts[4] == "preupload":
            answer = {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
            }
        else:
            name = "/".join(parts[2:4])
            files = self._files(name, parts[5], content=True)
            for line in body.splitlines():
                change = json.loads(line)
                if change["key"] == "file":
                    file = change["value"]
                    files[file["path"]] = base64.b64decode(file["content"])
                elif change["key"] == "deletedFile":
                    del files[change["value"]["path"]]
            commit = self.hub.commit(name)
            answer = {"commitUrl": f"{self._url(name)}/commit/{commit}", "commitOid": commit}
        return json.dumps(answer).encode(), {"Content-Type": "application/json"}

    def _url(self, name: str) -> str:
        return f"http://{self.headers['Host']}/{name}"


def _digest(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


def set_offline(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    """Forbid or allow the client to use the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(
        "transformers.utils.hub._is_offline_mode", offline, raising=False
    )  # before 5
    _forget_connections()


def _forget_connections() -> None:
    """Have the client make new ones: releases below 1 decide once whether a connection is allowed."""
    tools: Any = huggingface_hub.utils
    (tools.reset_sessions if hasattr(tools, "reset_sessions") else tools.close_session)()


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Generator[FakeHub]:
    """A hub that the client takes for the real one, with a cache of its own."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    set_offline(monkeypatch, False)
    files: Any = huggingface_hub.file_download  # releases below 1 have a copy there
    monkeypatch.setattr(files, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(cache), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    try:
        yield hub
    finally:
        _forget_connections()
        server.shutdown()
        server.server_close()
        thread.join()
