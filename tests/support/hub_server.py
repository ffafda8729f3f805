"""The Hub on this machine: the routes that the real client calls, and what it was told to lose."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN = "hf_" + "localTokenOfNobody".ljust(30, "x")
USER = "user"
LARGE = (".safetensors", ".bin", ".png")


@dataclass
class Repo:
    """The newest commit of a repository."""

    private: bool
    uploads: dict[str, bytes] = field(default_factory=dict)  # of large files, by sha256
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: int = 1

    @property
    def sha(self) -> str:
        return f"{self.commits:040x}"


class HubServer(ThreadingHTTPServer):
    """Repositories in memory: `user/frozen` takes no file, `user/lost` none while `is_losing`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.is_losing = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def handle_route(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.partition("?")[0])
        for methods, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split():
                return self.answer(answer, **found.groupdict())
        return self.send(404, {"error": f"no route {self.command} {path}"})

    def answer(self, answer: Callable[..., None], *, repo: str | None = None, **parts: str) -> None:
        is_open = answer in (Handler.validate_yaml, Handler.put)  # as on the real one
        if not is_open and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, {"error": "Invalid username or password."})
        if repo is not None and repo not in self.server.repos:
            return self.send(404, {"error": "Repository not found"}, code="RepoNotFound")
        if repo is not None:
            self.name, self.repo = repo, self.server.repos[repo]
        return answer(self, **parts)

    do_GET = do_HEAD = do_POST = do_PUT = handle_route  # noqa: N815

    def send(self, status: int, content: Any = None, *, code: str = "", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        headers |= {"Content-Length": str(len(body))} | ({"X_Error_Code": code} if code else {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keep pytest's output clean."""

    def json(self) -> Any:
        return json.loads(self.body)

    # Accounts and repositories

    def whoami(self) -> None:
        self.send(200, {"type": "user", "name": USER, "orgs": [], "auth": {}})

    def create(self) -> None:
        told = self.json()
        owner = told.get("organization") or USER
        name = f"{owner}/{told['name']}"
        if owner != USER:
            return self.send(403, {"error": f"You have no right to create {name}"})
        status = 409 if name in self.server.repos else 200
        self.server.repos.setdefault(name, Repo(told.get("visibility") == "private"))
        return self.send(status, {"url": f"{self.server.url}/{name}"})

    def may_write(self) -> None:
        is_own = self.name.startswith(f"{USER}/")
        self.send(200 if is_own else 403, {} if is_own else {"error": "It is not yours"})

    def info(self) -> None:
        siblings = [{"rfilename": name} for name in self.repo.files]
        found = {"id": self.name, "sha": self.repo.sha, "private": self.repo.private}
        self.send(200, {**found, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def tree(self) -> None:
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.repo.files.items()
        ]
        self.send(200, json.dumps(entries).encode())

    # Up

    def validate_yaml(self) -> None:
        """Refuse a card whose metadata are no YAML, or without what its results need."""
        head = re.match(r"---\n(.*?)\n---\n", self.json()["content"], re.DOTALL)
        errors, warnings = [], []
        try:
            data = yaml.safe_load(head[1]) if head else {}
            assert all(isinstance(tag, str) for tag in data.get("tags", []))
            results = [r for model in data.get("model-index", []) for r in model["results"]]
            _ = [
                (r["task"]["type"], r["dataset"]["type"], r["metrics"][0]["value"]) for r in results
            ]
        except (yaml.YAMLError, AssertionError, AttributeError, LookupError, TypeError) as error:
            errors = [{"message": repr(error)}]
        if head is None:
            warnings = [{"message": "empty or missing yaml metadata in repo card"}]
        self.send(400 if errors else 200, {"errors": errors, "warnings": warnings})

    def preupload(self) -> None:
        if self.name == "user/frozen":
            return self.send(403, {"error": "You may not write here"})
        files = [
            {
                "path": told["path"],
                "uploadMode": "lfs" if told["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for told in self.json()["files"]
        ]
        return self.send(200, {"files": files})

    def batch(self) -> None:
        objects = []
        for told in self.json()["objects"]:
            upload = f"{self.server.url}/upload/{self.name}/{told['oid']}"
            verify = f"{self.server.url}/{self.name}/verify"
            actions = {"upload": {"href": upload}, "verify": {"href": verify}}
            is_known = told["oid"] in self.repo.uploads
            objects.append(told if is_known else {**told, "actions": actions})
        self.send(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if self.name == "user/lost" and self.server.is_losing:
            self.close_connection = True  # without an answer
            return None
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.send(400, {"error": "other bytes than announced"})
        self.repo.uploads[oid] = self.body
        return self.send(200)

    def verify(self) -> None:
        told = self.json()
        is_there = len(self.repo.uploads.get(told["oid"], b"")) == told["size"]
        self.send(200 if is_there else 404)

    def commit(self) -> None:
        for told in map(json.loads, self.body.splitlines()):
            value = told["value"]
            if told["key"] == "file":
                self.repo.files[value["path"]] = base64.b64decode(value["content"])
            elif told["key"] == "lfsFile":
                self.repo.files[value["path"]] = self.repo.uploads[value["oid"]]
        self.repo.commits += 1
        url = f"{self.server.url}/{self.name}/commit/{self.repo.sha}"
        self.send(200, {"commitUrl": url, "commitOid": self.repo.sha})

    # Down

    def resolve(self, revision: str, file: str) -> None:
        if revision not in ("main", self.repo.sha):
            return self.send(404, code="RevisionNotFound")
        if (data := self.repo.files.get(file)) is None:
            return self.send(404, code="EntryNotFound", X_Repo_Commit=self.repo.sha)
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self.send(200, data, ETag=tag, X_Repo_Commit=self.repo.sha)


R = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("GET", f"/api/models/{R}/auth-check/write", Handler.may_write),
    ("GET", f"/api/models/{R}(?:/revision/main)?", Handler.info),
    ("GET", rf"/api/models/{R}/tree/\w+", Handler.tree),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"/api/models/{R}/preupload/main", Handler.preupload),
    ("POST", f"/{R}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", rf"/upload/{R}/(?P<oid>\w+)", Handler.put),
    ("POST", f"/{R}/verify", Handler.verify),
    ("POST", f"/api/models/{R}/commit/main", Handler.commit),
    ("HEAD GET", f"/{R}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
]


@contextmanager
def serve() -> Iterator[HubServer]:
    """Run the server in a thread."""
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
