"""From a run's file and options to a job's request, in the one schema that the API has, too."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from swapmeet.cli.options import read_template
from swapmeet.cli.run_options import RunOptions
from swapmeet.cli.tables import plain
from swapmeet.errors import RequestRefused
from swapmeet.fine_tuning.request import JobRequest, parse_request
from swapmeet.fine_tuning.run_file import read_run_file
from swapmeet.sweeps.request import Sweep, parse_sweep

OPENAI = {"base": "model", "seed": "seed", "metadata": "metadata"}
HYPERPARAMETERS = {"epochs": "n_epochs", "batch_size": "batch_size", "beta": "beta"}
LORA = {"cpus": "resources.cpus", "gpus": "resources.gpus", "target": "target_modules", "tag": "tags"}
"""Where options stand in a request; all others stand under `lora`, by their own names."""
METHODS = ("supervised", "dpo")
ELSEWHERE = {"data", "validation", "file", "method", "alias", "follow", "url", "local", "registry", "home"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job's request whose files are still on this machine.

    Attributes:
        fields: as they were written, without the files.
        files: what there is to be uploaded, by field.
        request: all of it, checked; in place of files' ids it has words of no meaning.
        sweep: what is to be tried, if the file says so; `request` is then the first configuration's.
    """

    fields: Mapping[str, Any]
    files: Mapping[str, Path]
    request: JobRequest
    sweep: Sweep | None = None


def wanted(options: RunOptions) -> Wanted:
    """What a command line asks for; options count more than the file.

    Raises:
        RequestRefused: every mistake of both, each with its option or its path in the file.
        DataError: the chat template can not be read.
    """
    written = read_run_file(options.file) if options.file else {}
    mistakes = [*_shorthand(written, "base", "model"), *_shorthand(written, "name", "lora.name")]
    said = _apply(options, written)
    named = dict(_files(options, written))
    mistakes += [f"{name}: {path} is not there. Name a file." for name, path in named.values() if not _is_there(path)]
    files = {field: path for field, (_, path) in named.items()}
    same = len({os.path.realpath(path) for path in files.values()}) < len(files)
    for option in _tried(said, written):
        said.pop(option)
        mistakes.append(f"--{option.replace('_', '-')}: the file's sweep tries that. Leave one of the two out.")
    sweep, whole = None, written | {field: "file" if same else field for field in files}
    try:
        sweep = parse_sweep(whole) if whole.get("sweep") is not None else None
        request = sweep.requests[0] if sweep else parse_request({**whole, "sweep": None})
    except RequestRefused as error:
        mistakes.append(_by_options(str(error), said))
    if mistakes:
        raise RequestRefused((f"{options.file}: " if options.file else "") + " ".join(mistakes))
    return Wanted({name: value for name, value in written.items() if name not in files}, files, request, sweep)


def _tried(said: Mapping[str, str], written: Mapping[str, Any]) -> list[str]:
    """The options that would have no effect, as the file's sweep tries values of them."""
    grid, listed = _at(written, "sweep.grid"), _at(written, "sweep.configurations")
    places = [grid, *(listed if isinstance(listed, list) else ())]
    names = {name for each in places if isinstance(each, dict) for name in each}
    return [option for option, path in said.items() if path.rpartition(".")[2] in names]


def _apply(options: RunOptions, written: dict[str, Any]) -> dict[str, str]:
    """Write options over what the file has; gives the path of each."""
    said = {name: value for name, value in options.said().items() if name not in ELSEWHERE}
    if options.target:
        said["target"] = "all-linear" if options.modules() == "all-linear" else options.target
    if options.chat_template:
        said["chat_template"] = read_template(options.chat_template)
    if options.metadata:
        kept = written.get("metadata")
        said["metadata"] = (kept if isinstance(kept, dict) else {}) | _pairs(options.metadata)
    if "epochs" in said and said["epochs"].is_integer():
        said["epochs"] = int(said["epochs"])  # the option takes parts of an epoch, and the request does not
    if "batch_size" in said:  # which is that of a step in the request
        parts = said.get("gradient_accumulation", _at(written, "lora.gradient_accumulation"))
        said["batch_size"] *= parts if type(parts) is int else 1
    place = _place(options, written, needed=not HYPERPARAMETERS.keys().isdisjoint(said))
    paths = {name: _path(name, place) for name in said}
    for name, value in said.items():
        _put(written, paths[name], value)
    for name, other in (("learning_rate", f"{place}.learning_rate_multiplier"), ("name", "suffix")):
        if name in said and _at(written, other) is not None:
            _put(written, other, None)
    return paths | ({"method": "method.type"} if options.method else {})


def _place(options: RunOptions, written: dict[str, Any], needed: bool) -> str:
    """The path of the hyper-parameters, which go along where an option changes the method."""
    older = written.get("hyperparameters")
    if older is not None and options.method is None:
        return "hyperparameters"
    kind = _at(written, "method.type")
    kind = kind if isinstance(kind, str) else "supervised"
    method = options.method if options.method in METHODS else kind
    present = written.get("method") or {}
    if options.method and isinstance(present, dict):
        settings = present.get(kind) or (older and {"hyperparameters": written.pop("hyperparameters")})
        others = {name: value for name, value in present.items() if name != kind}
        written["method"] = others | {"type": options.method, method: settings}
    elif needed:
        _put(written, "method.type", method)
    return f"method.{method}.hyperparameters"


def _path(option: str, hyperparameters: str) -> str:
    if option in HYPERPARAMETERS:
        return f"{hyperparameters}.{HYPERPARAMETERS[option]}"
    return OPENAI.get(option) or f"lora.{LORA.get(option, option)}"


def _shorthand(written: dict[str, Any], short: str, path: str) -> Iterator[str]:
    """Put a field where the API has it; a sentence where it stands in both places."""
    value = written.pop(short, None)
    if value is not None and _at(written, path) is not None:
        yield f"{short} and {path} are the same. Keep one of them."
    elif value is not None:
        _put(written, path, value)


def _files(options: RunOptions, written: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Path]]]:
    """Field, what to call it, and path: the option's from here, the file's from where the file is."""
    for field, name in (("training_file", "data"), ("validation_file", "validation")):
        option, given = getattr(options, name), written.get(field)
        if option is not None:
            yield field, ("DATA" if name == "data" else "--validation", option.expanduser())
        elif isinstance(given, str) and given:
            assert options.file is not None
            yield field, (field, options.file.parent / Path(given).expanduser())


def _is_there(path: Path) -> bool:
    return os.path.exists(path)  # which, unlike the path's own method, bears any name


def _pairs(metadata: list[str]) -> dict[str, str]:
    split = [pair.partition("=") for pair in metadata]
    if wrong := [plain(key) for key, equals, _ in split if not key or not equals]:
        raise typer.BadParameter(f"{', '.join(map(repr, wrong))}: write KEY=VALUE.", param_hint="--metadata")
    return {key: value for key, _, value in split}


def _by_options(text: str, paths: Mapping[str, str]) -> str:
    """Mistakes, each by the name of the option where one wrote it."""
    for option, path in paths.items():
        text = re.sub(rf"(?<![\w.]){re.escape(path)}(?:\.\d+)?(?= is |: )", f"--{option.replace('_', '-')}", text)
    return text


def _at(written: Mapping[str, Any], path: str) -> Any:
    found: Any = written
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _put(written: dict[str, Any], path: str, value: Any) -> None:
    """Set a field, unless what should hold it is something else, which is a mistake of the file's."""
    *parents, last = path.split(".")
    for name in parents:
        if written.get(name) is None:
            written[name] = {}
        written = written[name]
        if not isinstance(written, dict):
            return
    written[last] = value
