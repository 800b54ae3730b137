"""Which commands there are, and the module of each: `swapmeet --help` is told without importing any of them."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

COMMANDS = {
    "up": ("server", "Serve the base and every adapter of the registry, until Ctrl-C."),
    "chat": ("server", "Talk to an adapter on a running server (SWAPMEET_URL, SWAPMEET_API_KEY)."),
    "train": (
        "training",
        "Fine-tune a base with QLoRA: on the server of SWAPMEET_URL as a job, or here, to publish the adapter.",
    ),
    "plan": ("planning", "Tell what `train` with the same arguments would need: a run, or all of a sweep."),
    "push": ("adapters", "Publish an adapter as a new version."),
    "pull": ("adapters", "Fetch an adapter as a PEFT folder, every byte checked."),
    "show": (
        "adapters",
        "An adapter's versions and aliases, and what stands out of the weights of its latest version.",
    ),
    "tag": ("adapters", "Point an alias to a version."),
    "yank": ("adapters", "Withdraw a version: it is not served any more, except to whoever names its digest."),
    "search": ("search", "Find adapters by words and filters; all must fit."),
    "card": (
        "search",
        "An adapter's card: what it is for, on what it was trained, what it measured and answers; Markdown for a file.",
    ),
    "like": ("search", "Like an adapter, in your tenant's name; once more changes nothing."),
    "unlike": ("search", "Take a like back."),
    "find-file": ("search", "Which adapters a file is part of, withdrawn ones too."),
    "recall": ("withdrawal", "Forbid a version to everybody."),
    "reach": ("withdrawal", "Which servers a recall or deletion reached, and what they had of the version."),
    "delete": ("withdrawal", "Delete a version for good."),
    "untag": ("withdrawal", "Remove an alias."),
    "undo": ("withdrawal", "Point an alias to where it pointed before its last move."),
    "share": ("withdrawal", "Say who may read an adapter: its owner only, tenants that are named, or all."),
    "history": ("withdrawal", "Moves of an adapter's aliases: when, which, to what version, and by whom."),
    "signing-key": ("signing", "Make a pair of keys to sign adapters with (ECDSA on P-256)."),
    "sign": (
        "signing",
        "Sign a version: its name, its manifest and the digests of all its files.",
    ),
    "verify": ("signing", "Read a version whole, compare every byte with its digest, and check its signatures."),
    "lineage": (
        "provenance",
        "The adapters that a version's training went on from, up to the base, and what made each.",
    ),
    "bom": (
        "provenance",
        "A version's bill of materials (CycloneDX 1.6, JSON): files, base, data, packages, licences and metrics.",
    ),
    "export-oci": (
        "compat",
        "Write an adapter as an OCI image layout, which skopeo and oras copy to any registry of images.",
    ),
    "doctor": ("diagnosis", "Check what this machine has and what would stop a run or a server."),
    "demo": ("demonstration", "Train three tenants' adapters, publish them, and serve all three from one NF4 base."),
    "usage": ("usage", "What was used: tokens, GPU-seconds, storage."),
    "audit": ("usage", "Who did what to what: list, export, verify."),
    "base": ("bases", "Base models: add, list, show, hash."),
    "data": ("data", "Training data: check it, see what of it is trained."),
    "tenant": ("tenants", "Tenants of a running server: create, list, show, set."),
    "key": ("keys", "API keys of a running server: create, list, revoke, rotate."),
    "jobs": ("jobs", "Fine-tuning jobs of a running server (SWAPMEET_URL, SWAPMEET_API_KEY)."),
    "sweeps": ("sweeps", "Sweeps of a running server: many configurations, the best kept."),
    "webhook": ("webhooks", "Webhooks: URLs that a running server tells of jobs' ends."),
    "store": ("store", "Stores of adapters, without a server: probe, check, clean, copy, take along."),
}
"""By name: the module, and the first sentence of its help."""


class Commands(TyperGroup):
    """A group whose commands are imported when they are used."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=told) for name, (_, told) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See the library: the name, the command and what follows it."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(name) if name and found else found, rest


def load(name: str) -> Any:
    """Import a command: its module has an `app`, which is a group of that name, or registers its commands."""
    module = import_module(f"swapmeet.cli.{COMMANDS[name][0]}")
    app = typer.Typer(callback=lambda: None, pretty_exceptions_enable=False, rich_markup_mode=None)
    if hasattr(module, "register"):
        module.register(app)
    else:
        app.add_typer(module.app, name=name)
    return get_group(app).commands[name]
