"""The image's Dockerfile, as far as it can be checked without a container engine."""

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "infra" / "container" / "Dockerfile"
Instruction = tuple[str, str]


def read_stages() -> list[list[Instruction]]:
    """Each stage's (instruction, value) pairs, from its FROM on."""
    stages: list[list[Instruction]] = []
    for entry in DockerfileParser(path=str(DOCKERFILE)).structure:
        if entry["instruction"] == "FROM":
            stages.append([])
        if entry["instruction"] != "COMMENT":
            stages[-1].append((entry["instruction"], entry["value"]))
    return stages


def values(stage: list[Instruction], instruction: str) -> list[str]:
    return [value for name, value in stage if name == instruction]


def copied_from_repository(stage: list[Instruction]) -> list[str]:
    copies = [value.split() for value in values(stage, "COPY") if "--from" not in value]
    return [source.rstrip("/") for copy in copies for source in copy[:-1]]


@pytest.fixture(scope="module")
def build() -> list[Instruction]:
    return read_stages()[0]


@pytest.fixture(scope="module")
def final() -> list[Instruction]:
    return read_stages()[-1]


def test_there_are_a_build_and_a_final_stage_on_one_pinned_python() -> None:
    images = [stage[0][1].split()[0] for stage in read_stages()]
    assert len(images) == 2
    assert len(set(images)) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", images[0])


def test_what_is_copied_exists_and_reaches_the_builder(build: list[Instruction], final: list[Instruction]) -> None:
    sources = copied_from_repository(build) + copied_from_repository(final)
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {"pyproject.toml", "platform", "registry", "serving", "training", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{source}" in lines, source


def test_the_build_stage_has_all_that_the_wheel_needs(build: list[Instruction], tmp_path: Path) -> None:
    for name in copied_from_repository(build):
        source, target = REPOSITORY / name, tmp_path / "source" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    commands = [value for value in values(build, "RUN") if value.startswith("pip wheel")]
    assert len(commands) == 1
    arguments = commands[0].replace("--wheel-dir /wheels", f"--wheel-dir {tmp_path}").split()[1:]
    subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--no-build-isolation", "--quiet", "--disable-pip-version-check"],
        cwd=tmp_path / "source",
        check=True,
    )
    (wheel,) = tmp_path.glob("swapmeet-*.whl")
    assert "swapmeet/cli/__init__.py" in zipfile.ZipFile(wheel).namelist()


def test_the_wheel_is_what_is_installed(final: list[Instruction]) -> None:
    assert copied_from_repository(final) == ["constraints.txt"]
    assert "--from=build /wheels/ /wheels/" in values(final, "COPY")
    installs = [value for value in values(final, "RUN") if "pip install" in value]
    assert len(installs) == 1
    assert '"$(echo /wheels/swapmeet-*.whl)[all]"' in installs[0]
    assert "--constraint /wheels/constraints.txt" in installs[0]


def test_it_runs_the_platform_and_not_as_root(final: list[Instruction]) -> None:
    (user,) = values(final, "USER")
    assert int(user.split(":")[0]) > 0
    names = [name for name, _ in final]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name == "RUN")
    assert [json.loads(value) for value in values(final, "ENTRYPOINT")] == [["swapmeet"]]
    assert [json.loads(value) for value in values(final, "CMD")] == [["up", "--host", "0.0.0.0"]]
    assert values(final, "EXPOSE") == ["8000"]


def test_the_home_is_a_volume(final: list[Instruction]) -> None:
    home = DockerfileParser(path=str(DOCKERFILE)).envs["SWAPMEET_HOME"]
    assert values(final, "VOLUME") == [home]
    assert any(f"--owner=swapmeet --group=swapmeet {home}" in value for value in values(final, "RUN"))


class Answer(http.server.BaseHTTPRequestHandler):
    """200 to /healthz while `healthy`, else 503."""

    healthy = True

    def do_GET(self) -> None:
        self.send_response(200 if self.healthy and self.path == "/healthz" else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("healthy", [True, False])
def test_the_health_check_tells_a_healthy_server_from_a_failing_one(
    healthy: bool, final: list[Instruction], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answer, "healthy", healthy)
    (check,) = values(final, "HEALTHCHECK")
    python, *arguments = json.loads(check.partition("CMD ")[2])
    assert python == "python"
    command = [sys.executable, *(argument.replace(":8000/", f":{port}/") for argument in arguments)]
    assert f":{port}/" in command[-1]
    assert (subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0) is healthy
