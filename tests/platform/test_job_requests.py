"""From what a caller writes to the row of a job: every mistake at once, `auto` resolved, names made, models found."""

import contextlib
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from swapmeet.database import Database
from swapmeet.database.tables import JobRow, TenantRow
from swapmeet.errors import RequestRefused
from swapmeet.files import Files
from swapmeet.fine_tuning import JobRequests, Models, parse_request, settle
from swapmeet.fine_tuning.hyperparameters import automatic_batch, automatic_epochs, resolve
from swapmeet.fine_tuning.models import adapter_name
from swapmeet.settings import load_settings
from swapmeet_registry import AdapterName, Fingerprint, Registry
from swapmeet_registry.stores import open_store
from swapmeet_training import FineTune

DIGEST = "sha256:" + "0" * 64
PLAIN = {"model": "tiny", "training_file": "file-1"}
NEW_SETTINGS = {"method", "beta", "rslora", "dora", "init", "packing", "early_stopping", "keep_best", "chat_template"}
"""Of runs, which `FineTune` has now or will have."""


def refused(**given: Any) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        parse_request({**PLAIN, **given})
    return caught.value


def test_the_least_and_the_most_that_may_be_asked_for() -> None:
    least = parse_request(PLAIN | {"seed": None, "lora": None, "metadata": None, "method": None})
    assert (least.kind, least.lora.rank, least.lora.dropout) == ("supervised", None, 0.0)
    assert least.asked == {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
    most = parse_request(
        PLAIN
        | {
            "validation_file": "file-2",
            "suffix": "x" * 64,
            "seed": 2**31 - 1,
            "metadata": {f"k{n}" * 20: "v" * 512 for n in range(16)},
            "integrations": [{"type": "wandb", "wandb": {"project": "p", "entity": None, "tags": ["a"]}}],
            "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 2, "n_epochs": 50, "batch_size": 256}}},
            "lora": {
                "rank": 512, "alpha": 1e9, "dropout": 0.5, "target_modules": ["q_proj"], "rslora": True, "dora": True,
                "init": "gaussian", "max_length": 8, "schedule": "cosine", "warmup_ratio": 0, "weight_decay": 0.1,
                "early_stopping": 3, "chat_template": "{{ messages }}", "resources": {"cpus": 0.5, "gpus": 0.25},
                "priority": -100, "deadline": "2127-01-06T18:00:00+01:00", "gradient_accumulation": 16,
            },
        }
    )  # fmt: skip
    assert most.asked == {"n_epochs": 50, "batch_size": 256, "learning_rate_multiplier": "auto", "beta": 2}
    assert most.lora.deadline == datetime(2127, 1, 6, 17, tzinfo=UTC)


def test_yaml_reads_the_same() -> None:
    text = "model: tiny\ntraining_file: file-1\nlora:\n  rank: 8\n  deadline: 2127-01-06T18:00:00Z\n  tags: [a]\n"
    assert parse_request(yaml.safe_load(text)).lora.rank == 8


def test_all_mistakes_are_told_at_once_with_their_paths() -> None:
    error = refused(
        training_file="",
        suffix="x" * 65,
        seed=-1,
        colour="red",
        metadata={"a": 1},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 51, "batch_size": "many"}}},
        lora={
            "rank": 0,
            "ranks": 8,
            "target_modules": [],
            "resources": {"gpus": 2},
            "deadline": "2001-01-01T00:00:00Z",
        },
    )
    said = str(error)
    for path in (
        "training_file", "suffix", "seed", "colour is no parameter", "metadata.a",
        "method.supervised.hyperparameters.n_epochs is 51 but should be less than or equal to 50",
        "batch_size is 'many' but should be a valid integer", "lora.rank is 0",
        "lora.ranks is no parameter; known are rank",
        "lora.target_modules", "lora.resources.gpus is 2", "lora.deadline: is over",
    ):  # fmt: skip
        assert path in said, path
    assert error.param == "training_file"
    with pytest.raises(RequestRefused, match="missing"):
        parse_request({})


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "reinforcement is not offered"),
        ({"method": {"type": "dpo", "supervised": {}}}, "does not go with the type 'dpo'"),
        ({"method": {"type": "dpo"}, "hyperparameters": {"n_epochs": 1}}, "older place"),
        ({"validation_file": "file-1"}, "is the training file"),
        ({"lora": {"early_stopping": 2, "eval_every": 5}}, "early_stopping needs a validation_file"),
        ({"lora": {"early_stopping": 2, "eval_every": 5}}, "eval_every needs a validation_file"),
        ({"lora": {"show_examples": True, "examples": 2}}, "show_examples needs a validation_file"),
        ({"lora": {"show_examples": True, "examples": 0}}, "show_examples shows none"),
        ({"lora": {"examples": 11}}, "lora.examples is 11"),
        ({"lora": {"learning_rate": 1e-4}, "hyperparameters": {"learning_rate_multiplier": 2}}, "both given"),
        ({"lora": {"gradient_accumulation": 3}, "hyperparameters": {"batch_size": 8}}, "does not divide"),
        ({"lora": {"packing": True}, "method": {"type": "dpo"}}, "packing joins examples"),
        ({"lora": {"name": "a"}, "suffix": "b"}, "both name the adapter"),
        ({"lora": {"dora": True, "init": "pissa"}}, "pissa"),
        ({"lora": {"target_modules": ["a", "a"]}}, "twice"),
        ({"lora": {"target_modules": "some"}}, "all-linear"),
        ({"lora": {"name": "Acme/X"}}, "is not an adapter name"),
        ({"lora": {"deadline": "2127-01-06T18:00:00"}}, "timezone"),
        ({"lora": {"alpha": math.inf}}, "finite"),
        ({"lora": {"sweep": {"rank": [8]}}}, "lora.sweep is no parameter"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "17 pairs"),
        ({"metadata": {"k" * 65: "x"}}, "65 characters"),
        ({"metadata": {"": "x"}}, "empty key"),
        ({"metadata": {"a\0": "x"}}, "null character"),
        ({"suffix": "\ud800"}, "surrogate"),
        ({"seed": True}, "valid integer"),
        ({"seed": "5"}, "valid integer"),
        ({"seed": 10**400}, "2147483648"),
        ({"integrations": [{"type": "comet"}]}, "wandb"),
        ({"integrations": [{"type": "wandb"}]}, "integrations.0.wandb.wandb is missing"),
        ({"lora": [1]}, "lora is [1]"),
        ({"model": "x" * 301}, "300"),
    ],
)
def test_what_does_not_go_is_refused_in_words(given: dict[str, Any], word: str) -> None:
    assert word in str(refused(**given))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["model", "training_file", "validation_file", "suffix", "seed", "metadata", "integrations", "method",
          "hyperparameters", "lora", "x"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
@settings(max_examples=150, deadline=None)
def test_nothing_that_json_can_say_is_more_than_refused(given: dict[str, Any]) -> None:
    with contextlib.suppress(RequestRefused):
        parse_request(given)


@pytest.mark.parametrize(
    ("examples", "epochs", "batch"),
    [(1, 25, 4), (10, 10, 4), (33, 3, 4), (34, 3, 4), (1000, 3, 4), (2001, 3, 8), (8334, 2, 32), (25_001, 1, 64),
     (10**7, 1, 256)],
)  # fmt: skip
def test_auto_follows_openai_s_cookbook(examples: int, epochs: int, batch: int) -> None:
    assert automatic_epochs(examples) == epochs
    assert automatic_batch(examples) == batch
    asked = {"n_epochs": "auto", "batch_size": 7, "learning_rate_multiplier": "auto"}
    assert resolve(asked, examples) == {"n_epochs": epochs, "batch_size": 7, "learning_rate_multiplier": 1.0}


def test_an_automatic_batch_can_be_cut_into_parts() -> None:
    for examples in (10, 3000, 10**6):
        for parts in range(1, 257):
            batch = automatic_batch(examples, parts)
            assert batch % parts == 0
            assert 4 <= batch <= 256 or batch == parts


@given(
    st.text(min_size=1, max_size=64), st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?", fullmatch=True)
)
@settings(max_examples=300, deadline=None)
def test_every_suffix_and_base_make_a_name_or_a_refusal(suffix: str, base: str) -> None:
    assert AdapterName.parse(adapter_name("acme", base, "ftjob-0123abcdef", None, None)).name.endswith("-abcdef")
    if any(letter in "abcdefghijklmnopqrstuvwxyz0123456789" for letter in suffix.lower()):
        AdapterName.parse(adapter_name("acme", base, "ftjob-0123abcdef", suffix, None))
    else:
        with pytest.raises(RequestRefused):
            adapter_name("acme", base, "ftjob-0123abcdef", suffix, None)


def test_names_that_are_asked_for() -> None:
    job = "ftjob-0123abcdef"
    assert adapter_name("acme", "tiny", job, "My Model!  v2", None) == "acme/my-model-v2"
    assert adapter_name("acme", "tiny", job, None, "legal") == adapter_name("acme", "tiny", job, None, "acme/legal")
    with pytest.raises(RequestRefused, match="not acme's"):
        adapter_name("acme", "tiny", job, None, "beta/legal")


@pytest.fixture
def base() -> Fingerprint:
    return Fingerprint(name="tiny", weights=DIGEST, tokenizer=DIGEST)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"file://{tmp_path}/registry")


@pytest.fixture
def requests(database: Database, registry: Registry, tmp_path: Path) -> JobRequests:
    database.write(lambda session: session.add_all([TenantRow(name=name) for name in ("acme", "beta")]))
    files = Files(database, open_store(f"file://{tmp_path}/storage"))
    return JobRequests(files, Models(registry, lambda: ["tiny"]), load_settings(home=tmp_path / "home"))


@pytest.fixture
def upload(requests: JobRequests, tmp_path: Path) -> Callable[..., str]:
    """`upload(examples=None, form="chat", tenant="acme")`: a file, checked if its examples are said."""

    def make(examples: int | None = None, form: str = "chat", tenant: str = "acme") -> str:
        source = tmp_path / "x.jsonl"
        source.write_text("{}\n")
        row = requests.files.create(tenant, "x.jsonl", "fine-tune", source)
        if examples is not None:
            requests.files.judge(row.id, ok=True, details=None, report={"form": form, "examples": examples})
        return row.id

    return make


def make_row(requests: JobRequests, tenant: str = "acme", key: str | None = None, **given: Any) -> JobRow:
    def visible(model: str) -> bool:
        return model.startswith(f"{tenant}/")

    return requests.row(parse_request({"model": "tiny", **given}), tenant, "key-1", visible, key)


def test_a_checked_file_settles_a_job(requests: JobRequests, upload: Callable[..., str]) -> None:
    lora = {"rank": 8, "resources": {"gpus": 0.5}, "priority": 5, "tags": ["a"], "gradient_accumulation": 2}
    row = make_row(requests, training_file=upload(40), suffix="Dates", metadata={"team": "x"}, seed=7, lora=lora)
    assert (row.base, row.adapter, row.parent, row.state) == ("tiny", "acme/dates", None, "validating_files")
    assert row.hyperparameters == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert (row.resources, row.priority, row.job_metadata, row.created_by) == ({"gpus": 0.5}, 5, {"team": "x"}, "key-1")
    wanted = {"rank": 8, "alpha": 16.0, "epochs": 3, "batch_size": 2, "gradient_accumulation": 2, "seed": 7,
              "learning_rate": 2e-4, "method": "supervised", "beta": 0.1, "target_modules": "all-linear"}  # fmt: skip
    assert wanted.items() <= row.settings.items()
    fields = set(FineTune.model_fields) | NEW_SETTINGS
    assert set(row.settings) == fields - {"name", "base", "base_fingerprint", "data", "validation", "parent"}
    known = {name: value for name, value in row.settings.items() if name in FineTune.model_fields}
    base = {"name": "x", "weights": DIGEST, "tokenizer": DIGEST}
    FineTune(**known, name=row.adapter, base="x", base_fingerprint=base, data="x")


def test_defaults_are_those_of_a_run(requests: JobRequests, upload: Callable[..., str]) -> None:
    row = make_row(requests, training_file=upload(10))
    for name, field in FineTune.model_fields.items():
        if name in row.settings and name not in ("seed", "epochs", "batch_size"):
            expected = list(field.default) if isinstance(field.default, tuple) else field.default
            assert row.settings[name] == expected, name
    assert 0 <= row.seed < 1 << 31
    assert row.settings["seed"] == row.seed


def test_an_unchecked_file_is_waited_for(requests: JobRequests, upload: Callable[..., str]) -> None:
    file_id = upload()
    row = make_row(requests, training_file=file_id, method={"type": "dpo"})
    assert (row.hyperparameters["n_epochs"], row.settings["method"]) == ("auto", "dpo")
    assert not {"epochs", "batch_size"} & set(row.settings)
    requests.files.judge(file_id, ok=True, details=None, report={"form": "preference", "examples": 50})
    file = requests.files.get("acme", file_id)
    for _ in range(2):
        settle(row, file, None)
        assert row.hyperparameters == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0, "beta": 0.1}
        assert (row.settings["learning_rate"], row.settings["method"]) == (5e-6, "dpo")


def test_files_that_can_not_be_used(requests: JobRequests, upload: Callable[..., str], tmp_path: Path) -> None:
    other = requests.files.create("acme", "x.txt", "user_data", tmp_path / "x.jsonl").id if upload() else ""
    bad = upload()
    requests.files.judge(bad, ok=False, details="line 3 has no messages.", report={})
    cases: list[tuple[str, str, str]] = [
        (upload(9), "must have at least 10 examples", "invalid_n_examples"),
        (upload(50, "preference"), "learns from chat or completion", "invalid_training_file"),
        (bad, "line 3 has no messages.", "invalid_training_file"),
        (other, "uploaded for 'user_data'", "invalid_request"),
        (upload(50, tenant="beta"), "There is no file", "invalid_request"),
        ("file-none", "There is no file", "invalid_request"),
    ]
    for file_id, word, code in cases:
        with pytest.raises(RequestRefused, match=word) as caught:
            make_row(requests, training_file=file_id)
        assert (caught.value.code, caught.value.param) == (code, "training_file")
    with pytest.raises(RequestRefused) as caught:
        make_row(requests, training_file="file-none", validation_file=bad, suffix="☃")
    assert all(word in str(caught.value) for word in ("training_file", "validation_file", "suffix"))


def test_only_requests_that_mean_the_same_have_one_digest(requests: JobRequests, upload: Callable[..., str]) -> None:
    file_id = upload(50)

    def digest(tenant: str = "acme", key: str | None = None, **given: Any) -> str:
        return make_row(requests, tenant, key, training_file=file_id, **given).request_digest

    plain = digest()
    assert plain == digest(suffix=None, metadata=None, lora={"dropout": 0.0})
    others = [digest(seed=1), digest(suffix="a"), digest(lora={"rank": 16}), digest(key="one"), digest(key="two")]
    assert len({plain, *others}) == 6


def test_models_that_can_be_trained(
    requests: JobRequests, upload: Callable[..., str], registry: Registry, base: Fingerprint, tmp_path: Path
) -> None:
    import json

    import numpy as np
    from safetensors.numpy import save_file

    folder, file_id = tmp_path / "adapter", upload(50)
    folder.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{module}.lora_A.weight": np.ones((4, 32), np.float32),
            f"{module}.lora_B.weight": np.ones((16, 4), np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    version = registry.push(folder, "acme/dates", base=base)
    registry.push(folder, "acme/far", base=Fingerprint(name="other", weights=DIGEST, tokenizer=DIGEST))

    row = make_row(requests, model="acme/dates:1", training_file=file_id)
    assert (row.base, row.parent, row.model) == ("tiny", version.pinned, "acme/dates:1")
    assert (row.settings["rank"], row.settings["alpha"], row.settings["target_modules"]) == (4, 8, ["q_proj"])
    make_row(requests, model="acme/dates", training_file=file_id, lora={"rank": 4, "target_modules": ["q_proj"]})
    with pytest.raises(RequestRefused, match=r"lora\.rank is 8") as caught:
        make_row(
            requests, model="acme/dates", training_file=file_id, lora={"rank": 8, "dora": True, "init": "gaussian"}
        )
    assert "lora.dora" in str(caught.value)
    assert "lora.init" in str(caught.value)
    for model in ("ft:gpt-4o-mini:org:x:1", "gpt-4o", "acme/none", "acme/dates:7", "acme/far", "/etc", "../x", "a/b/c"):
        with pytest.raises(RequestRefused) as missing:
            make_row(requests, model=model, training_file=file_id)
        assert missing.value.code in ("model_not_found", "invalid_name")
        assert missing.value.param == "model"
    with pytest.raises(RequestRefused, match="There is no file file-none") as both:
        make_row(requests, model="gpt-4o", training_file="file-none")
    assert str(both.value).startswith("The base 'gpt-4o' is not known here.")
    with pytest.raises(RequestRefused, match="at most 64 characters"):
        parse_request(PLAIN | {"suffix": "x" * 65})
    with pytest.raises(RequestRefused, match="a mix"):
        make_row(requests, model="acme/dates*0.5+acme/dates*0.5", training_file=file_id)
    theirs = upload(50, tenant="beta")
    said = []
    for model in ("acme/dates", "acme/none"):
        with pytest.raises(RequestRefused) as hidden:
            make_row(requests, "beta", model=model, training_file=theirs)
        said.append(str(hidden.value).replace(model, "X"))
    assert said[0] == said[1]


def test_a_deadline_that_is_over_is_refused() -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    assert parse_request(PLAIN | {"lora": {"deadline": soon.isoformat()}}).lora.deadline == soon
