"""The command line starts quickly: it imports what it needs for what is asked, and nothing else."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from swapmeet.cli import app
from swapmeet.cli.commands import COMMANDS, load

SLOW = {
    "boto3", "botocore", "cryptography", "fastapi", "httpcore", "httpx", "huggingface_hub", "mlflow", "numpy",
    "pydantic_settings", "ray", "rich", "sqlalchemy", "torch", "transformers", "yaml",
}  # fmt: skip
"""What takes long to import, and nobody needs to be told how a command is used."""


def imported(*arguments: str) -> set[str]:
    """The modules, without packages' parts, that `swapmeet ARGUMENTS` imports."""
    script = (
        "import sys, json\nfrom swapmeet.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_the_help_imports_no_command(arguments: tuple[str, ...]) -> None:
    found = imported(*arguments)
    assert found.isdisjoint(SLOW | {"pydantic"})
    ours = {name for name in found if name.startswith("swapmeet")}
    assert ours == {"swapmeet", "swapmeet.errors", "swapmeet.cli", "swapmeet.cli.commands"}


@pytest.mark.parametrize(
    "command", ["search", "push", "pull", "show", "recall", "jobs", "tenant", "doctor", "up", "bom"]
)
def test_a_commands_help_imports_nothing_slow(command: str) -> None:
    assert imported(command, "--help").isdisjoint(SLOW | {"swapmeet_registry.registry"})


def test_the_packages_import_nothing_slow() -> None:
    script = "import sys, json, swapmeet, swapmeet_registry, swapmeet_training; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert set(json.loads(done.stdout)).isdisjoint(SLOW | {"pydantic"})


@pytest.mark.parametrize("package", ["swapmeet_registry", "swapmeet_training"])
def test_every_public_name_is_there(package: str) -> None:
    module = __import__(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_the_list_says_what_the_commands_say() -> None:
    """Each is where the list says, its help begins as the list says, and no module has one that is not listed."""
    import typer
    from typer.main import get_group

    from swapmeet import cli

    told = {name: (module, load(name).get_short_help_str(10**6)) for name, (module, _) in COMMANDS.items()}
    assert told == COMMANDS
    registering = [getattr(cli, module) for module in {module for module, _ in COMMANDS.values()}]
    everything = typer.Typer(callback=lambda: None)
    for module in registering:
        if hasattr(module, "register"):
            module.register(everything)
    groups = {name for name, (module, _) in COMMANDS.items() if not hasattr(getattr(cli, module), "register")}
    assert set(get_group(everything).commands) | groups == set(COMMANDS)


def test_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"swapmeet {version('swapmeet')}\n")


def test_a_slip_is_told_what_is_near() -> None:
    done = CliRunner().invoke(app, ["serch"])
    assert done.exit_code == 2
    assert "search" in done.output
