"""The package's face: what importing it loads, and what its errors are."""

import json
import pickle
import subprocess
import sys

import pytest

import swapmeet_registry
from swapmeet_registry import RegistryError, errors

HEAVY = ("torch", "ray", "transformers", "peft", "bitsandbytes", "boto3", "botocore", "numpy", "huggingface_hub")
SCRIPT = """
import json, sys
import swapmeet_registry
from swapmeet_registry import *
at_first = sorted(sys.modules)
open_store("file:///tmp")
local = sorted(sys.modules)
Registry("hf://acme")
hub = sorted(sys.modules)
open_store("s3://bucket")
print(json.dumps([at_first, local, hub, sorted(sys.modules)]))
"""


def test_importing_loads_nothing_heavy_and_clients_come_with_their_addresses() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    at_first, local, hub, all_three = json.loads(done.stdout)
    assert "pydantic" in at_first
    assert [name for name in HEAVY if name in at_first] == []
    assert [name for name in HEAVY if name in local] == []
    assert [name for name in HEAVY if name in hub] == ["huggingface_hub"]
    assert [name for name in HEAVY if name in all_three] == ["boto3", "botocore", "huggingface_hub"]


def test_every_public_name_is_there_once() -> None:
    assert sorted(set(swapmeet_registry.__all__)) == sorted(swapmeet_registry.__all__)
    for name in swapmeet_registry.__all__:
        assert getattr(swapmeet_registry, name) is not None


ALL_ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, RegistryError)]


@pytest.mark.parametrize("error", ALL_ERRORS)
def test_errors_travel_between_processes(error: type[RegistryError]) -> None:
    copy = pickle.loads(pickle.dumps(error("Do this.")))
    assert (type(copy), str(copy), copy.code) == (error, "Do this.", error.code)


def test_every_error_has_a_code_and_is_exported() -> None:
    assert len(ALL_ERRORS) >= 12
    assert len({error.code for error in ALL_ERRORS}) == len(ALL_ERRORS)
    assert {error.__name__ for error in ALL_ERRORS} <= set(swapmeet_registry.__all__)
