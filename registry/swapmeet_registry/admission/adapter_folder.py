"""The files of a folder that is to be published: which belong to the adapter, and each opened once, never by a link.

Training tools leave much beside an adapter (Axolotl, LLaMA-Factory, TRL and Unsloth write into the folder that the
run has). What is known to be a run's own is left out and told; whatever else is not an adapter's is refused by name,
so that nothing is left out without a word.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from swapmeet_registry.admission.lora_config import FILE as CONFIG
from swapmeet_registry.admission.lora_weights import FILE as WEIGHTS
from swapmeet_registry.errors import Refused
from swapmeet_registry.manifest import FILE_NAME
from swapmeet_registry.origin.provenance import Provenance

REQUIRED = (CONFIG, WEIGHTS)
EXTRAS = re.compile(r"README\.md|LICEN[CS]E(\.md)?|NOTICE|.+\.(json|txt|jinja|model)")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_WEIGHTS = 4 << 30
MAX_EXTRA = 64 << 20
MAX_EXTRAS = 256 << 20
"""Bytes of all files but the weights, together."""
MAX_FILES = 64
MAX_LISTED = 10_000

RUNS_FILES = re.compile(
    r"training_args\.(bin|json|yaml)|trainer_(state\.json|log\.jsonl)|(all|train|eval|predict|test)_results\.json"
    r"|(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin)|rng_state(_\d+)?\.pth|random_states_\d+\.pkl|zero_to_fp32\.py"
    r"|latest|config\.json|llamaboard_config\.yaml|[\w.-]+\.log|training_[\w.-]+\.png|events\.out\.tfevents\.[\w.-]+"
)
"""What a run leaves: its arguments and state, logs and curves, and the base's config.json."""
RUNS_FOLDERS = re.compile(
    r"checkpoint-\d+|runs|logs|wandb|mlruns|completions|global_step\d+|(pytorch_model_fsdp|optimizer)_\d+"
)
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An open folder whose names were checked.

    Attributes:
        path: where it is, for messages.
        handle: the open folder.
        files: what belongs to the adapter, sorted; `swapmeet.json` is among them.
        left_out: what belongs to the run that made it; folders end with a slash.
    """

    path: Path
    handle: int
    files: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def notices(self) -> tuple[str, ...]:
        """What was left out, a sentence; nothing where nothing was."""
        if not self.left_out:
            return ()
        names, more = ", ".join(self.left_out[:10]), len(self.left_out) - 10
        told = f"{names} and {more} more" if more > 0 else names
        return (f"Left out, as the training run's own and no part of the adapter: {told}.",)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file, to be read without a buffer: whatever is put in its place from here on is not seen.

        Raises:
            Refused: it is a link or no plain file, or it is too large.
        """
        with os.fdopen(_handle(self.handle, name), "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{name!r} is not a plain file. Move it out of the adapter's folder.")
            limit = MAX_WEIGHTS if name == WEIGHTS else MAX_EXTRA
            if status.st_size > limit:
                raise Refused(f"{name} has {status.st_size} bytes; at most {limit} are accepted.")
            yield stream

    def read(self, name: str, limit: int) -> bytes:
        """A small file's bytes.

        Raises:
            Refused: see `open`; or it has more than `limit` bytes.
        """
        with self.open(name) as stream:
            data = b"".join(iter(lambda: stream.read(1 << 20), b"")) if _size(stream) <= limit else b""
            if max(_size(stream), len(data)) > limit:
                raise Refused(f"{name} has {_size(stream)} bytes; at most {limit} are accepted.")
            return data


@contextmanager
def open_folder(path: Path) -> Iterator[AdapterFolder]:
    """Open a folder and check the names in it.

    Raises:
        Refused: it is no folder, lacks a file that an adapter must have, or holds what an adapter may not.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"{path} is not a folder. Name the folder that PEFT's save_pretrained() wrote.") from None
    try:
        files, left_out = _names(path, handle)
        yield AdapterFolder(path, handle, files, left_out)
    finally:
        os.close(handle)


def _names(path: Path, handle: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    with os.scandir(handle) as entries:
        found = sorted(islice(entries, MAX_LISTED + 1), key=lambda entry: entry.name)
    if len(found) > MAX_LISTED:
        raise Refused(f"{path} holds over {MAX_LISTED} files; an adapter may have {MAX_FILES}.")
    files, left_out = [], []
    for entry in found:
        if entry.name.startswith("."):
            continue
        if RUNS_FOLDERS.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            left_out.append(f"{entry.name}/")
        elif RUNS_FILES.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            left_out.append(entry.name)
        else:
            files.append(entry.name)
            if len(files) <= MAX_FILES:
                _require_sound(entry)
    if len(files) > MAX_FILES:
        raise Refused(f"{path} holds {len(files)} files; an adapter may have {MAX_FILES}.")
    _require_distinct(files)
    for name in REQUIRED:
        if name not in files:
            raise Refused(f"{path} has no {name}. Save the adapter with PEFT's save_pretrained().")
    return tuple(files), tuple(left_out)


def _require_sound(entry: os.DirEntry[str]) -> None:
    name = entry.name
    if entry.is_symlink():
        raise _link(name)
    if not entry.is_file(follow_symlinks=False):
        raise Refused(f"{name!r} is not a plain file. Move it out of the adapter's folder.")
    if name.lower().endswith(PICKLED):
        raise Refused(
            f"{name!r} is a pickle, which can run code when it is loaded. Save the adapter with "
            "save_pretrained(), which writes safetensors, and remove this file."
        )
    if not re.fullmatch(FILE_NAME, name) or _DEVICES.fullmatch(name):
        raise Refused(f"{name!r} is not a file name that can be published. Use letters, digits and . _ + -.")
    if name not in (*REQUIRED, Provenance.FILE) and not EXTRAS.fullmatch(name):
        raise Refused(f"{name} does not belong to an adapter. Move it out of the folder.")


def _require_distinct(names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise Refused(f"{other} and {name} are one file where case does not count. Remove one of them.")


def _handle(folder: int, name: str) -> int:
    with suppress(IsADirectoryError):
        try:
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            with suppress(FileNotFoundError):
                if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    raise _link(name) from error
            raise
    raise Refused(f"{name!r} is not a plain file. Move it out of the adapter's folder.")


def _link(name: str) -> Refused:
    return Refused(f"{name!r} is a link. Put the file itself into the folder.")


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size
