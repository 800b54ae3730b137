"""What `swapmeet doctor` looks at: each check gives one line, and a failing one says what to do."""

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from swapmeet.client import HEALTHY, Client
from swapmeet.errors import PlatformError
from swapmeet.settings import Settings
from swapmeet_registry import Registry, RegistryError

TRAINING = ("torch", "transformers", "peft", "bitsandbytes", "ray")
FREE_GIB = 2


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, and what was seen or is to be done."""

    what: str
    ok: bool
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """Run every check; a check that fails does not stop the others."""
    checks: list[Callable[[Settings], Finding]] = [_packages, _compute, _nf4, _home, _registry, _port]
    if settings.url:
        checks.append(_server)
    return [check(settings) for check in checks]


def _packages(_: Settings) -> Finding:
    missing = [name for name in TRAINING if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("packages", False, f"{', '.join(missing)} missing: pip install 'swapmeet[all]'")
    return Finding("packages", True, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in TRAINING))


def _compute(_: Settings) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("compute", False, "torch is not installed")
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        return Finding("compute", True, f"{torch.cuda.device_count()} GPU ({', '.join(sorted(names))})")
    return Finding("compute", True, f"no GPU; {os.cpu_count()} CPU cores")


def _nf4(_: Settings) -> Finding:
    if importlib.util.find_spec("bitsandbytes") is None:
        return Finding("nf4", False, "bitsandbytes is not installed")
    from swapmeet_registry.bases.quiet import quiet

    with quiet():
        from bitsandbytes.functional import has_avx512bf16
    fused = "fused 4-bit kernels" if has_avx512bf16() else "no AVX512-BF16: 4-bit layers are slow on this CPU"
    return Finding("nf4", True, fused)


def _home(settings: Settings) -> Finding:
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
        probe = settings.folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding("home", False, f"{settings.folder} can not be written ({error.strerror}); set SWAPMEET_HOME")
    free = shutil.disk_usage(settings.folder).free / (1 << 30)
    return Finding("home", free > FREE_GIB, f"{settings.folder}, {free:.1f} GiB free (at least {FREE_GIB} wanted)")


def _registry(settings: Settings) -> Finding:
    try:
        names = Registry(settings.registry_url).names()
    except RegistryError as error:
        return Finding("registry", False, str(error))
    return Finding("registry", True, f"{settings.registry_url}, {len(names)} adapters")


def _port(settings: Settings) -> Finding:
    from swapmeet.server import check_port

    try:
        check_port(settings)
    except PlatformError as error:
        if _is_swapmeet(settings):
            return Finding("port", True, f"{settings.host}:{settings.port} is Swapmeet's own: it is up")
        return Finding("port", False, str(error))
    return Finding("port", True, f"{settings.host}:{settings.port} is free")


def _is_swapmeet(settings: Settings) -> bool:
    """Whether a Swapmeet server holds the port; any answer of another kind, or none, is a no."""
    try:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        health = httpx.get(f"http://{host}:{settings.port}/healthz", timeout=2, trust_env=False)
        return bool(health.json() == HEALTHY)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False


def _server(settings: Settings) -> Finding:
    try:
        with Client() as client:
            models = client.models()
    except PlatformError as error:
        return Finding("server", False, str(error))
    return Finding("server", True, f"{settings.url} serves {len(models)} models")
