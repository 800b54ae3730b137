"""What no file may say: where a developer's machine keeps things, and where packages are downloaded from."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MACHINE = re.compile(r"(?<![\w.~}*)\]-])/(?:root|work|home/\w+|Users/\w+)(?![\w-])")
INDEX = re.compile(
    r"\b(?:\w+\.)*(?:pypi|pythonhosted|npmjs|anaconda)\.(?:org|com)\b|(?<!pkg:)\bpypi\b|/simple/", re.IGNORECASE
)


def tracked_files() -> list[Path]:
    """Every file that is or would be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    paths = [REPOSITORY / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and path != Path(__file__)]


@pytest.mark.parametrize("pattern", [MACHINE, INDEX], ids=["machine", "index"])
def test_no_file_says_it(pattern: re.Pattern[str]) -> None:
    files = tracked_files()
    assert REPOSITORY / "pyproject.toml" in files
    said = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert said == []


def test_the_patterns_find_what_they_forbid() -> None:
    for text in ("in /root/project", '"/work/main"', "cd /home/ana/x", "/Users/ana", "=/work\n", "file:///work/x"):
        assert MACHINE.search(text), text
    for text in ("acme/work", "teams/root/x", "https://example.org/home", "/workers", "./work/x", "/var/lib/swapmeet"):
        assert not MACHINE.search(text), text
    for text in ("https://pypi.org/simple", "files.pythonhosted.org", "a PyPI mirror", "http://mirror/simple/"):
        assert INDEX.search(text), text
    for text in ("a simple path", "packages", "simple/complex"):
        assert not INDEX.search(text), text
