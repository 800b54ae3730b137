"""The file of `swapmeet train -f`: a job's request in YAML, in which files are paths.

Read by the rules of YAML 1.2, under which JSON is YAML, too: `no` and `1:30` are text, `1e-4` is a number, and a
moment stays as it is written.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from swapmeet.errors import RequestRefused
from swapmeet.files.rules import shortened

LARGEST = 1 << 20
"""Bytes of such a file."""


class _Loader(yaml.SafeLoader):
    """YAML's core schema; a key that stands twice, or is no text, is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a key that is no text", problem_mark=key.start_mark)
            if key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"{shortened(key.value)} twice", problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))

    def refuse(self, node: yaml.Node) -> None:
        raise yaml.MarkedYAMLError(problem=f"a {node.tag.rpartition(':')[2]}", problem_mark=node.start_mark)


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|)\Z"), ["~", "n", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)\Z"), ["t", "f"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]{1,18}\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)
for _other in ("timestamp", "binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_other}", _Loader.refuse)


def read_run_file(path: Path) -> dict[str, Any]:
    """What stands in a run's file, not yet checked against the schema.

    Raises:
        RequestRefused: it can not be read, or is no mapping; the message names the line.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RequestRefused(f"{path} can not be read ({reason}). Name a YAML file.") from None
    if len(text) > LARGEST:
        raise RequestRefused(f"{path} is over {LARGEST >> 20} MiB, which no run's file is. Name a YAML file.")
    try:
        found = yaml.load(text, _Loader)  # noqa: S506 - derived from SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestRefused(f"{path}{_where(error)} Correct it.") from None
    if not isinstance(found, dict):
        raise RequestRefused(f"{path} holds no fields. Write each as `name: value`, such as `base: smollm2-135m`.")
    return found


def _where(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return " is nested too deeply."
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{place}: this is no YAML ({problem or str(error).splitlines()[0]})."
