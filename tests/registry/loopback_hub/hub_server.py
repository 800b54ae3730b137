"""A Hub on loopback, for the endpoints that huggingface_hub calls: a test tool, and no product.

    with LoopbackHub() as hub:
        hub.users["hf_token"] = User("alice", {"acme": "write"})
        # HF_ENDPOINT=hub.address HF_HUB_DISABLE_XET=1

What it is faithful in: who sees and may do what, and how that is refused (status, X-Error-Code, X-Error-Message);
commits under a lock with their parent compared; large files by LFS, in one piece or in parts, their SHA-256 checked
on arrival; downloads redirected to a signed address on another host that refuses a token, with ranges; `resolve` with
ETag, X-Repo-Commit and X-Linked-*; cards validated; lists in pages.

`inject` puts a fault before the next requests of a kind: it gets a function that carries the request out, and gives the
answer, or None to drop the connection.
"""

import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit
from uuid import uuid4

from hub_repositories import Commit, File, Refused, Repository, card_data, card_problems


@dataclass(frozen=True)
class User:
    name: str
    organizations: dict[str, str] = field(default_factory=dict)
    """By name: `read` or `write`."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Forward = Callable[[], Answer]
Fault = Callable[[Forward], Answer | None]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    user: User | None

    def json(self) -> Any:
        return json.loads(self.body)


class LoopbackHub(ThreadingHTTPServer):
    """The Hub; its state is open to tests."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int = 0, part_size: int = 0, page: int = 100) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.part_size, self.page = part_size, page
        self.users: dict[str, User] = {}
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self._parts: dict[str, dict[int, bytes]] = {}
        self._faults: list[tuple[str, re.Pattern[str], Fault]] = []
        self._lock = threading.RLock()
        self._secret = uuid4().hex
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage(self) -> str:
        """Where large files are: another host, as far as a client can see."""
        return f"http://localhost:{self.server_port}/storage"

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def inject(self, method: str, pattern: str, *faults: Fault) -> None:
        """Put faults before the next requests of this method whose path the pattern is found in."""
        with self._lock:
            self._faults += [(method, re.compile(pattern), fault) for fault in faults]

    @property
    def pending(self) -> int:
        """Faults that did not happen yet."""
        return len(self._faults)

    def answer(self, request: Request) -> Answer | None:
        with self._lock:
            self.requests.append((request.method, request.path))
            fault = None
            for each in self._faults:
                if each[0] == request.method and each[1].search(request.path):
                    self._faults.remove(each)
                    fault = each[2]
                    break

        def forward() -> Answer:
            try:
                return self._route(request)
            except Refused as error:
                headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
                return Answer(error.status, json.dumps({"error": error.message, **error.body}).encode(), headers)

        return fault(forward) if fault else forward()

    def _route(self, request: Request) -> Answer:
        for method, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method in method.split("|"):
                return getattr(self, f"_{name}")(request, *map(unquote, match.groups()))  # type: ignore[no-any-return]
        raise Refused(404, "Sorry, we can't find the page you are looking for.")

    # --- who may what

    def _repository(self, request: Request, name: str, write: bool = False) -> Repository:
        found = self.repositories.get(name.lower())
        role = self._role(request.user, name)
        if found is None or (found.private and role is None):
            raise Refused(404 if request.user else 401, "Repository not found", "RepoNotFound")
        if write and role != "write":
            if request.user is None:
                raise Refused(401, "Invalid username or password.")
            raise Refused(403, "You don't have the rights to write to this repository")
        return found

    def _role(self, user: User | None, name: str) -> str | None:
        owner = name.partition("/")[0].lower()
        if user is None:
            return None
        return "write" if user.name == owner else user.organizations.get(owner)

    # --- repositories

    def _whoami(self, request: Request) -> Answer:
        if request.user is None:
            raise Refused(401, "Invalid username or password.")
        return _json({"type": "user", "name": request.user.name, "orgs": []})

    def _create(self, request: Request) -> Answer:
        asked = request.json()
        owner = asked.get("organization") or (request.user.name if request.user else "")
        name = f"{owner}/{asked['name']}"
        if request.user is None:
            raise Refused(401, "Invalid username or password.")
        if self._role(request.user, name) != "write":
            raise Refused(403, f"You don't have the rights to create a model under the namespace {owner}")
        short = asked["name"]
        if not re.fullmatch(r"\w[\w.-]{0,95}", short) or "--" in short or ".." in short or short.endswith(".git"):
            raise Refused(400, f"Invalid repository name {short}")
        url = f"{self.address}/{name}"
        with self._lock:
            if name.lower() in self.repositories:
                raise Refused(409, "You already created this model repo", url=url)
            self.repositories[name.lower()] = Repository(name, asked.get("visibility", "public") == "private")
        return _json({"url": url, "name": name, "id": uuid4().hex})

    def _delete(self, request: Request) -> Answer:
        asked = request.json()
        name = f"{asked['organization']}/{asked['name']}"
        self._repository(request, name, write=True)
        del self.repositories[name.lower()]
        return Answer(200)

    def _settings(self, request: Request, name: str) -> Answer:
        repository, asked = self._repository(request, name, write=True), request.json()
        repository.gated = asked.get("gated", repository.gated)
        repository.private = asked.get("visibility", "private" if repository.private else "public") == "private"
        return _json({})

    def _info(self, request: Request, name: str, revision: str = "main") -> Answer:
        return _json(self._described(self._repository(request, name), revision, "blobs" in request.query))

    def _list(self, request: Request) -> Answer:
        query = request.query
        author, wanted = query.get("author", [None])[0], set(query.get("filter", []))
        found = []
        for key, repository in sorted(self.repositories.items()):
            if repository.private and self._role(request.user, key) is None:
                continue
            described = self._described(repository, "main", blobs=False)
            if (author is None or key.startswith(f"{author.lower()}/")) and wanted <= set(described["tags"]):
                found.append(described)
        return self._paged(request, found)

    def _described(self, repository: Repository, revision: str, blobs: bool) -> dict[str, Any]:
        commit = repository.find(revision)
        tree = repository.commits[commit].tree
        siblings = []
        for path, file in sorted(tree.items()):
            lfs = {"sha256": file.lfs[0], "size": file.size, "pointerSize": len(file.data)} if file.lfs else None
            more = {"size": file.size, "blobId": file.oid} | ({"lfs": lfs} if lfs else {})
            siblings.append({"rfilename": path} | (more if blobs else {}))
        card = card_data(tree)
        return {
            "_id": hashlib.sha1(repository.id.encode()).hexdigest()[:24],
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.id.partition("/")[0],
            "sha": commit,
            "private": repository.private,
            "gated": repository.gated,
            "tags": [*card.get("tags", []), *([card["library_name"]] if "library_name" in card else [])],
            "cardData": card,
            "siblings": siblings,
        }

    def _paged(self, request: Request, items: list[Any]) -> Answer:
        at = int(request.query.get("cursor", ["0"])[0])
        answer = _json(items[at : at + self.page])
        if at + self.page >= len(items):
            return answer
        query = request.query | {"cursor": [str(at + self.page)]}
        link = f'<{self.address}{request.path}?{urlencode(query, doseq=True)}>; rel="next"'
        return Answer(answer.status, answer.body, answer.headers | {"Link": link})

    # --- git

    def _refs(self, request: Request, name: str) -> Answer:
        repository = self._repository(request, name)
        with repository.lock:
            return _json({
                "branches": [_ref("heads", *each) for each in repository.branches.items()],
                "tags": [_ref("tags", *each) for each in repository.tags.items()],
                "converts": [],
            })  # fmt: skip

    def _commits(self, request: Request, name: str, revision: str) -> Answer:
        history = self._repository(request, name).history(revision)
        return self._paged(request, [_described_commit(commit) for commit in history])

    def _make_tag(self, request: Request, name: str, revision: str) -> Answer:
        repository, tag = self._repository(request, name, write=True), request.json()["tag"]
        with repository.lock:
            if tag in repository.tags:
                raise Refused(409, f"Tag {tag} already exists")
            repository.tags[tag] = repository.find(revision)
        return _json({})

    def _drop_tag(self, request: Request, name: str, tag: str) -> Answer:
        repository = self._repository(request, name, write=True)
        if repository.tags.pop(tag, None) is None:
            raise Refused(404, f"Invalid rev id: {tag}", "RevisionNotFound")
        return _json({})

    def _make_branch(self, request: Request, name: str, branch: str) -> Answer:
        repository = self._repository(request, name, write=True)
        with repository.lock:
            if branch in repository.branches:
                raise Refused(409, f"Reference already exists: refs/heads/{branch}")
            start = json.loads(request.body or b"{}").get("startingPoint", "main")
            repository.branches[branch] = repository.find(start)
        return _json({})

    def _tree(self, request: Request, name: str, revision: str, folder: str = "") -> Answer:
        tree = self._repository(request, name).tree(revision)
        return self._paged(
            request, [_entry(path, file) for path, file in sorted(tree.items()) if path.startswith(folder)]
        )

    def _paths_info(self, request: Request, name: str, revision: str) -> Answer:
        tree = self._repository(request, name).tree(revision)
        paths = parse_qs(request.body.decode()).get("paths", [])
        return _json([_entry(path, tree[path]) for path in paths if path in tree])

    # --- sending

    def _validate_yaml(self, request: Request) -> Answer:
        problems = card_problems(request.json()["content"])
        answer = {"errors": [{"message": problem} for problem in problems], "warnings": []}
        return _json(answer, 400 if problems else 200)

    def _preupload(self, request: Request, name: str, revision: str) -> Answer:
        repository, asked = self._repository(request, name, write=True), request.json()
        ignored = asked.get("gitIgnore")
        files = [repository.mode(revision, file["path"], file["size"], ignored) for file in asked["files"]]
        return _json({"files": files})

    def _batch(self, request: Request, name: str) -> Answer:
        repository = self._repository(request, name, write=True)
        objects = []
        for wanted in request.json()["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in repository.large:
                href = f"{self.storage}/{repository.id}/{oid}"
                verify = {"href": f"{self.address}/{repository.id}.git/info/lfs/objects/verify"}
                if self.part_size and size > self.part_size:
                    upload, count = uuid4().hex, -(-size // self.part_size)
                    self._parts[upload] = {}
                    header = {str(n): self._signed(f"{href}/{upload}/{n}") for n in range(1, count + 1)}
                    header["chunk_size"] = str(self.part_size)
                    done = {
                        "href": self._signed(f"{self.address}/storage/{repository.id}/{oid}/{upload}"),
                        "header": header,
                    }
                    answer["actions"] = {"upload": done, "verify": verify}
                else:
                    answer["actions"] = {"upload": {"href": self._signed(href)}, "verify": verify}
            objects.append(answer)
        return _json({"transfer": "basic", "objects": objects})

    def _store(self, request: Request, name: str, oid: str) -> Answer:
        self._require_signed(request)
        self.repositories[name.lower()].keep(oid, request.body)
        return Answer(200, headers={"ETag": f'"{oid}"'})

    def _store_part(self, request: Request, name: str, oid: str, upload: str, number: str) -> Answer:
        self._require_signed(request)
        self._parts[upload][int(number)] = request.body
        return Answer(200, headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    def _complete(self, request: Request, name: str, oid: str, upload: str) -> Answer:
        parts = self._parts.get(upload, {})
        said = {part["partNumber"]: part["etag"].strip('"') for part in request.json()["parts"]}
        if said != {number: hashlib.md5(data).hexdigest() for number, data in parts.items()}:
            raise Refused(400, "The parts are not those that were sent")
        self.repositories[name.lower()].keep(oid, b"".join(parts[number] for number in sorted(parts)))
        return _json({})

    def _verify(self, request: Request, name: str) -> Answer:
        repository, asked = self._repository(request, name, write=True), request.json()
        if len(repository.large.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "Object not found")
        return _json({})

    def _commit(self, request: Request, name: str, branch: str) -> Answer:
        repository = self._repository(request, name, write=True)
        lines = [json.loads(line) for line in request.body.splitlines() if line]
        assert request.user is not None
        made = repository.commit(branch, lines, request.user.name)
        return _json({"success": True, "commitOid": made.id, "commitUrl": f"{self.address}/{name}/commit/{made.id}"})

    # --- fetching

    def _resolve(self, request: Request, name: str, revision: str, path: str) -> Answer:
        repository = self._repository(request, name)
        granted = request.user is not None and request.user.name in repository.granted
        if repository.gated and self._role(request.user, name) is None and not granted:
            message = f"Access to model {repository.id} is restricted. You must have access to it."
            raise Refused(403 if request.user else 401, message, "GatedRepo")
        commit = repository.find(revision)
        file = repository.commits[commit].tree.get(path)
        headers = {"X-Repo-Commit": commit}
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers |= {"ETag": f'"{file.etag}"', "X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        if file.lfs:
            address = self._signed(f"{self.storage}/{repository.id}/{file.lfs[0]}")
            return Answer(302, headers=headers | {"Location": address})
        address = f"/api/resolve-cache/models/{repository.id}/{commit}/{quote(path)}"
        return Answer(307, headers=headers | {"Location": address})

    def _resolve_cache(self, request: Request, name: str, commit: str, path: str) -> Answer:
        file = self._repository(request, name).file(commit, path)
        return _ranged(request, file.data, {"ETag": f'"{file.oid}"', "X-Repo-Commit": commit})

    def _fetch(self, request: Request, name: str, oid: str) -> Answer:
        self._require_signed(request)
        if "authorization" in request.headers:
            raise Refused(400, "Only one auth mechanism allowed")
        return _ranged(request, self.repositories[name.lower()].large[oid], {"ETag": f'"{oid}"'})

    def _signed(self, address: str) -> str:
        return f"{address}?signature={self._signature(urlsplit(address).path)}"

    def _require_signed(self, request: Request) -> None:
        if request.query.get("signature") != [self._signature(request.path)]:
            raise Refused(403, "SignatureDoesNotMatch")

    def _signature(self, path: str) -> str:
        return hashlib.sha256(f"{self._secret} {path}".encode()).hexdigest()


_ID = r"([^/]+/[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", r"/api/models", "list"),
    ("GET", rf"/api/models/{_ID}", "info"),
    ("GET", rf"/api/models/{_ID}/revision/([^/]+)", "info"),
    ("PUT", rf"/api/models/{_ID}/settings", "settings"),
    ("GET", rf"/api/models/{_ID}/refs", "refs"),
    ("GET", rf"/api/models/{_ID}/commits/([^/]+)", "commits"),
    ("POST", rf"/api/models/{_ID}/tag/([^/]+)", "make_tag"),
    ("DELETE", rf"/api/models/{_ID}/tag/([^/]+)", "drop_tag"),
    ("POST", rf"/api/models/{_ID}/branch/([^/]+)", "make_branch"),
    ("GET", rf"/api/models/{_ID}/tree/([^/]+)", "tree"),
    ("GET", rf"/api/models/{_ID}/tree/([^/]+)/(.+)", "tree"),
    ("POST", rf"/api/models/{_ID}/paths-info/([^/]+)", "paths_info"),
    ("POST", rf"/api/models/{_ID}/preupload/([^/]+)", "preupload"),
    ("POST", rf"/api/models/{_ID}/commit/([^/]+)", "commit"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/verify", "verify"),
    ("PUT", rf"/storage/{_ID}/([0-9a-f]{{64}})", "store"),
    ("PUT", rf"/storage/{_ID}/([0-9a-f]{{64}})/(\w+)/(\d+)", "store_part"),
    ("POST", rf"/storage/{_ID}/([0-9a-f]{{64}})/(\w+)", "complete"),
    ("GET|HEAD", rf"/storage/{_ID}/([0-9a-f]{{64}})", "fetch"),
    ("GET|HEAD", rf"/api/resolve-cache/models/{_ID}/([^/]+)/(.+)", "resolve_cache"),
    ("GET|HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", "resolve"),
]


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _ref(kind: str, name: str, commit: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}


def _described_commit(commit: Commit) -> dict[str, Any]:
    authors = [{"user": commit.author}]
    about = {"title": commit.title, "message": commit.message, "date": commit.date}
    return {"id": commit.id, "authors": authors, **about}


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.lfs:
        entry["lfs"] = {"oid": file.lfs[0], "size": file.size, "pointerSize": len(file.data)}
    return entry


def _ranged(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    headers = headers | {"Accept-Ranges": "bytes"}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if match is None:
        return Answer(200, data, headers)
    start, end = int(match[1]), int(match[2] or len(data) - 1)
    if start >= len(data):
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
    part = data[start : end + 1]
    return Answer(206, part, headers | {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: LoopbackHub

    def handle_request(self) -> None:
        body = b"".join(self._body())
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        token = headers.get("authorization", "").removeprefix("Bearer ")
        user = self.server.users.get(token)
        answer: Answer | None
        if token and user is None and not parts.path.startswith("/storage/"):
            message = "Invalid credentials in Authorization header"
            answer = Answer(401, json.dumps({"error": message}).encode(), {"X-Error-Message": message})
        else:
            query = parse_qs(parts.query, keep_blank_values=True)
            answer = self.server.answer(Request(self.command, parts.path, query, headers, body, user))
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        cut = "X-Cut" in answer.headers  # a test breaks the answer off: it says more than comes
        self.send_header("Content-Length", str(len(answer.body) + cut))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(answer.body)
                self.wfile.flush()
        self.close_connection = self.close_connection or cut

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815 - names that http.server calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


if __name__ == "__main__":  # python hub_server.py PORT TOKEN USER ORGANIZATION
    with LoopbackHub(int(sys.argv[1])) as hub:
        hub.users[sys.argv[2]] = User(sys.argv[3], {sys.argv[4]: "write"})
        print(hub.address, flush=True)
        threading.Event().wait()
