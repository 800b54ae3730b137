"""The card of an adapter's repository: its README.md, which a Hub reads base, licence and metrics from."""

import json
import re
from collections.abc import Collection
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from swapmeet_registry.cards import Readme, parse_readme
from swapmeet_registry.cards.markdown import part
from swapmeet_registry.cards.sections import answers
from swapmeet_registry.manifest import Manifest
from swapmeet_registry.origin.licences import concerns_of

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
    unknown other
    """.split()  # noqa: SIM905 - a list of eighty strings is no easier to read
)
"""The identifiers that a Hub takes as a licence; any other goes by `other` and its name."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FRONT_MATTER = re.compile(r"\A---\s*\n.*?\n---\s*\n", re.DOTALL)


def card(
    manifest: Manifest,
    repository: str,
    version: int,
    config: bytes,
    readme: bytes | None,
    signers: Collection[str] = (),
) -> str:
    """A card's text. Of examples it has those that are part of the version: which all may see who may read it.

    Args:
        manifest: what the version consists of.
        repository: ORGANIZATION/NAME, as it is loaded.
        version: the version's number.
        config: its `adapter_config.json`.
        readme: its own README.md, whose text goes below the facts.
        signers: the ids of the keys that there are signatures by; whose they are, the reader has to know.
    """
    parts = [
        f"---\n{_metadata(manifest, config).to_yaml()}\n---",
        _facts(manifest, version, signers),
        *(f"> {_cell(concern)}" for concern in concerns_of(manifest)),
        _usage(repository, version),
        *map(part, answers(manifest.examples, parse_readme(readme) if readme is not None else Readme())),
    ]
    if readme is not None:
        parts.append(_FRONT_MATTER.sub("", readme.decode(errors="replace")).strip())
    return "\n\n".join(parts).strip() + "\n"


def _metadata(manifest: Manifest, config: bytes) -> ModelCardData:
    settings = json.loads(config)
    base = settings.get("base_model_name_or_path")
    task = "text-generation" if settings.get("task_type") == "CAUSAL_LM" else None
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=manifest.dataset or "unknown",
            dataset_name="as trained",
            metric_type=name,
            metric_value=value,
        )
        for name, value in sorted(manifest.metrics.items())
    ]
    known: dict[str, Any] = _license(manifest.license)
    return ModelCardData(
        base_model=base if isinstance(base, str) and _HUB_ID.fullmatch(base) else None,
        base_model_relation="adapter" if isinstance(base, str) and _HUB_ID.fullmatch(base) else None,
        library_name="peft",
        pipeline_tag=task,
        tags=["swapmeet", "lora", *(tag for tag in manifest.tags if tag not in ("swapmeet", "lora"))],
        model_name=manifest.adapter,
        eval_results=results or None,
        **known,
    )


def _license(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    if name.lower() in LICENSES:
        return {"license": name.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.") or "unnamed"}


def _facts(manifest: Manifest, version: int, signers: Collection[str]) -> str:
    lora, base = manifest.lora, manifest.base
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    rows = {
        "version": f"{version}, `{manifest.digest}`",
        "base": f"{_cell(base.name)}, weights `{base.weights}`",
        "LoRA": f"rank {lora.rank}, alpha {lora.alpha:g}, {lora.parameters:,} weights",
        "modules": _cell(targets),
        "licence": _cell(manifest.license or "not stated"),
        "data": f"`{manifest.dataset}`" if manifest.dataset else "not stated",
        **({"signatures by": ", ".join(f"`{key}`" for key in sorted(signers))} if signers else {}),
        **{_cell(name): f"{value:g}" for name, value in sorted(manifest.metrics.items())},
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([f"# {manifest.adapter}", "", "| | |", "|---|---|", *lines])


def _usage(repository: str, version: int) -> str:
    return f"""```python
model = PeftModel.from_pretrained(base, "{repository}", revision="v{version}")
```"""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
