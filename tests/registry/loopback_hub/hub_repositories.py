"""Repositories as a Hub keeps them: commits, branches, tags and large files, in memory.

A commit's id is a SHA-1 over its tree, parent and words, a file's that of git; large files stand in the tree as
pointers to their SHA-256, and a commit may only name such as were uploaded to the repository.
"""

import base64
import hashlib
import re
import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from typing import Any

import yaml

ATTRIBUTES = b"".join(
    f"*{end} filter=lfs diff=lfs merge=lfs -text\n".encode()
    for end in (".bin", ".safetensors", ".pt", ".model", ".gguf", ".zip", ".tar.*")
)
LARGE = 10 << 20
LICENSES = frozenset(["apache-2.0", "mit", "llama3.2", "gemma", "cc-by-4.0", "gpl-3.0", "other", "unknown"])


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class File:
    data: bytes
    """The file, or its pointer."""
    lfs: tuple[str, int] | None = None
    """SHA-256 and size of a large file."""

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def size(self) -> int:
        return self.lfs[1] if self.lfs else len(self.data)

    @property
    def etag(self) -> str:
        return self.lfs[0] if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    tree: dict[str, File]
    parent: str | None
    title: str
    message: str
    author: str
    date: str

    @property
    def id(self) -> str:
        lines = [f"{file.oid} {path}" for path, file in sorted(self.tree.items())]
        lines += [str(self.parent), self.title, self.message, self.author, self.date]
        return hashlib.sha1("\0".join(lines).encode()).hexdigest()


@dataclass
class Repository:
    id: str
    private: bool
    gated: Any = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        first = Commit({".gitattributes": File(ATTRIBUTES)}, None, "initial commit", "", "system", now())
        self.commits[first.id] = first
        self.branches["main"] = first.id

    def find(self, revision: str) -> str:
        """The commit that a branch, a tag or a commit's id stands for."""
        with self.lock:
            commit = self.branches.get(revision) or self.tags.get(revision)
            commit = commit or (revision if revision in self.commits else None)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def tree(self, revision: str) -> dict[str, File]:
        return self.commits[self.find(revision)].tree

    def file(self, revision: str, path: str) -> File:
        file = self.tree(revision).get(path)
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return file

    def history(self, revision: str) -> list[Commit]:
        found, at = [], self.find(revision) if self.commits else None
        while at is not None:
            found.append(self.commits[at])
            at = self.commits[at].parent
        return found

    def mode(self, revision: str, path: str, size: int, ignored: str | None) -> dict[str, Any]:
        """How a file is to be sent, and what of it is there."""
        tree = self.tree(revision)
        attributes = tree[".gitattributes"].data.decode() if ".gitattributes" in tree else ""
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        large = size > LARGE or any(fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)
        if ignored is None:
            ignored = tree[".gitignore"].data.decode() if ".gitignore" in tree else ""
        rules = [rule.strip("/") for rule in ignored.split()]
        names = [path, *path.split("/")]
        return {
            "path": path,
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": any(fnmatch(name, rule) for name in names for rule in rules),
            "oid": tree[path].etag if path in tree else None,
        }

    def commit(self, branch: str, lines: list[dict[str, Any]], author: str) -> Commit:
        """Apply a commit to a branch; nobody comes in between."""
        header = lines[0]["value"]
        with self.lock:
            if branch not in self.branches:
                raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            parent = self.branches[branch]
            if header.get("parentCommit", parent) != parent:
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(self.commits[parent].tree)
            for line in lines[1:]:
                self._apply(tree, line["key"], line["value"])
            if "README.md" in tree:
                problems = card_problems(tree["README.md"].data.decode())
                if problems:
                    raise Refused(400, "Invalid metadata in README.md: " + " ".join(problems))
            made = Commit(tree, parent, header["summary"], header.get("description", ""), author, now())
            self.commits[made.id] = made
            self.branches[branch] = made.id
            return made

    def _apply(self, tree: dict[str, File], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
            raise Refused(400, f"Invalid path {path}")
        if key == "file":
            tree[path] = File(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            data = self.large.get(value["oid"])
            if data is None:
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['oid']}")
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {len(data)}\n"
            tree[path] = File(pointer.encode(), (value["oid"], len(data)))
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            for each in [each for each in tree if each.startswith(path.rstrip("/") + "/")]:
                del tree[each]
        else:
            raise Refused(400, f"Unknown operation {key}")

    def content(self, file: File) -> bytes:
        return self.large[file.lfs[0]] if file.lfs else file.data

    def keep(self, oid: str, data: bytes) -> None:
        """Take a large file, if it is what it says."""
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, "The content does not have this SHA-256", "BadDigest")
        self.large[oid] = data

    def tamper(self, tag: str, path: str, data: bytes | None) -> None:
        """What somebody with write access can do: move a version's tag to a commit with another file."""
        with self.lock:
            old = self.commits[self.tags[tag]]
            tree = dict(old.tree)
            if data is None:
                del tree[path]
            elif tree[path].lfs:
                oid = hashlib.sha256(data).hexdigest()
                self.keep(oid, data)
                tree[path] = File(f"oid sha256:{oid}\n".encode(), (oid, len(data)))
            else:
                tree[path] = File(data)
            made = replace(old, tree=tree, title="Tampered", message="", date=now())
            self.commits[made.id] = made
            self.tags[tag] = made.id


def card_problems(text: str) -> list[str]:
    """What a Hub finds wrong with a card's front matter."""
    match = re.match(r"\A---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match.group(1)) or {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    problems = []
    if "license" in data and data["license"] not in LICENSES:
        problems.append('"license" must be one of the known licenses.')
    if data.get("license") == "other" and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", data.get("license_name", "other")):
        problems.append('"license_name" must be lower-case letters, digits, dots and dashes.')
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            problems.append(f'"base_model" with value "{base}" is not valid. Use a model id from the Hub.')
    if not all(isinstance(tag, str) for tag in data.get("tags") or []):
        problems.append('"tags" must be strings.')
    for entry in data.get("model-index") or []:
        if "name" not in entry or not all(
            {"task", "dataset", "metrics"} <= result.keys() for result in entry["results"]
        ):
            problems.append('"model-index" lacks something.')
    return problems


def card_data(tree: dict[str, File]) -> dict[str, Any]:
    """The front matter of a tree's card."""
    text = tree["README.md"].data.decode() if "README.md" in tree else ""
    match = re.match(r"\A---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    return (yaml.safe_load(match.group(1)) or {}) if match else {}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
