"""The file of `swapmeet train -f`, and what options make of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from swapmeet.cli.here import run_here
from swapmeet.cli.job_request import Wanted, wanted
from swapmeet.cli.run_options import RunOptions
from swapmeet.errors import RequestRefused
from swapmeet.fine_tuning.run_file import read_run_file
from swapmeet_registry import Provenance, Registry, RegistryError
from swapmeet_registry.bases import BaseLibrary
from swapmeet_training import FineTune

EXAMPLE = Path(__file__).parents[2] / "examples" / "run.yaml"
LINE = '{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(LINE * 40)
    (tmp_path / "held-out.jsonl").write_text(LINE.replace("a", "c") * 3)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def asked(folder: Path, text: str, **options: Any) -> Wanted:
    return wanted(RunOptions(file=written(folder, text), **options))


def refused(folder: Path, text: str, **options: Any) -> str:
    with pytest.raises(RequestRefused) as caught:
        asked(folder, text, **options)
    return str(caught.value)


SMALL = "base: tiny\ntraining_file: train.jsonl\n"


def test_the_example_is_a_whole_run_here_and_there() -> None:
    job = wanted(RunOptions(file=EXAMPLE))
    assert (job.request.model, job.request.lora.name, job.request.lora.learning_rate) == (
        "smollm2-135m",
        "acme/dates",
        1e-3,
    )
    assert [path.name for path in job.files.values()] == ["dates.jsonl", "held-out.jsonl"]
    run = run_here(RunOptions(file=EXAMPLE))
    assert (run.base, run.settings["epochs"], run.settings["batch_size"]) == ("smollm2-135m", 8, 4)
    assert set(run.settings) <= set(FineTune.model_fields)


def test_yaml_is_read_as_people_mean_it(folder: Path) -> None:
    text = "a: 1e-4\nb: 010\nc: no\nd: 1:30\ne: 2027-01-06T18:00:00Z\nf: 5.\ng: .5\nh: ~\ni:\nj: true\nk: '7'\nl: 1_0"
    assert read_run_file(written(folder, text)) == {
        "a": 1e-4, "b": 10, "c": "no", "d": "1:30", "e": "2027-01-06T18:00:00Z", "f": 5.0, "g": 0.5, "h": None,
        "i": None, "j": True, "k": "7", "l": "1_0",
    }  # fmt: skip
    assert read_run_file(written(folder, '{"a": [1, {"b": null}]}')) == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: this is no YAML ('a' twice)"),
        ("a: [1", "line 1"),
        ("1: x", "a key that is no text"),
        ("- a", "holds no fields"),
        ("", "holds no fields"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: !!timestamp x", "a timestamp"),
        ("a: !!int x", "this is no YAML"),
        ("a: \x01", "special characters"),
        ("[" * 50_000, "nested too deeply"),
        ("a: " + "x" * (2 << 20), "over 1 MiB"),
    ],
)
def test_what_is_no_run_file_is_told_with_its_line(text: str, says: str, folder: Path) -> None:
    message = refused(folder, text)
    assert says in message
    assert "run.yaml" in message


def test_a_file_that_is_not_there_or_not_text(folder: Path) -> None:
    (folder / "run.yaml").write_bytes(b"\xff")
    for path in (folder / "run.yaml", folder / "absent.yaml", folder):
        with pytest.raises(RequestRefused, match="can not be read"):
            read_run_file(path)


def test_all_mistakes_are_told_at_once_with_their_paths(folder: Path) -> None:
    text = """
        model: tiny
        base: tiny
        training_file: absent.jsonl
        validation_file: [1]
        colour: red
        method: {type: supervised, supervised: {hyperparameters: {n_epochs: 99}}}
        lora: {ranks: 8, dropout: 2, target_modules: [q_proj, q_proj], resources: {cpu: 1}}
    """
    message = refused(folder, text)
    assert message.startswith(f"{folder / 'run.yaml'}: base and model are the same. Keep one of them.")
    for says in (
        f"training_file: {folder / 'absent.jsonl'} is not there",
        "validation_file is",
        "colour is no parameter; known are model, training_file",
        "method.supervised.hyperparameters.n_epochs is 99",
        "lora.ranks is no parameter; known are rank",
        "lora.dropout is 2",
        "lora.target_modules: names a module twice",
        "lora.resources.cpu is no parameter",
    ):
        assert says in message
    loop = refused(folder, "base: tiny\nmetadata: &x {a: *x}\nlora: &y [*y]\nsuffix: &z [*z]")
    assert all(says in loop for says in ("training_file is missing", "metadata", "lora", "suffix"))
    assert "is the training file" in refused(folder, SMALL + "validation_file: ./train.jsonl")
    assert "model is missing" in refused(folder, "training_file: train.jsonl")
    assert "name and suffix" in refused(folder, SMALL + "suffix: a\nname: acme/b")


def test_options_override_the_file(folder: Path) -> None:
    text = (
        SMALL
        + """
suffix: dates
validation_file: held-out.jsonl
metadata: {team: x, kept: y}
method: {type: dpo, dpo: {hyperparameters: {n_epochs: 2, batch_size: 8, learning_rate_multiplier: 2}}}
lora: {rank: 4, gradient_accumulation: 2, dropout: 0.1, packing: false}
"""
    )
    job = asked(
        folder, text, base="other", name="acme/x", rank=8, dropout=0.0, epochs=3.0, batch_size=2, learning_rate=1e-3,
        beta=0.5, seed=0, metadata=["team=z=1"], target=["q_proj"], tag=["t"], gpus=0.5, gradient_checkpointing=False,
        data=folder / "held-out.jsonl", validation=folder / "train.jsonl",
    ).request  # fmt: skip
    assert (job.model, job.suffix, job.seed, job.metadata) == ("other", None, 0, {"team": "z=1", "kept": "y"})
    assert job.asked == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": "auto", "beta": 0.5}
    lora = job.lora
    assert (lora.name, lora.rank, lora.dropout, lora.learning_rate) == ("acme/x", 8, 0.0, 1e-3)
    assert (lora.target_modules, lora.tags, lora.resources.gpus) == (["q_proj"], ["t"], 0.5)
    assert not lora.gradient_checkpointing
    assert job.validation_file is not None


def test_an_option_of_the_method_takes_the_file_s_settings_along(folder: Path) -> None:
    older = asked(folder, SMALL + "hyperparameters: {n_epochs: 2}", batch_size=4)
    assert older.request.asked == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": "auto"}
    moved = asked(folder, SMALL + "hyperparameters: {n_epochs: 2}", method="dpo").request
    assert (moved.kind, moved.asked["n_epochs"], moved.asked["beta"]) == ("dpo", 2, "auto")
    text = SMALL + "method: {type: supervised, supervised: {hyperparameters: {n_epochs: 5}}}"
    assert asked(folder, text, method="dpo").request.asked["n_epochs"] == 5
    plain = asked(folder, SMALL, learning_rate=1e-3, epochs=2.0).request
    assert (plain.kind, plain.asked["n_epochs"]) == ("supervised", 2)
    assert "method is 'dpo'" in refused(folder, SMALL + "method: dpo", epochs=2.0)


def test_mistakes_of_options_are_told_by_the_options(folder: Path) -> None:
    message = refused(
        folder, SMALL + "lora: {alpha: -1}", epochs=1.5, rank=0, tag=["", "x"], gpus=3.0, method="ppo", init="zero"
    )
    for says in ("--epochs is 1.5", "--rank is 0", "--tag is", "--gpus is 3.0", "lora.alpha is -1", "--init is"):
        assert says in message
    assert "--method is" in message
    with pytest.raises(typer.BadParameter, match="KEY=VALUE"):
        asked(folder, SMALL, metadata=["team"])


def test_here_a_file_means_what_it_means_on_a_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SMALL + "name: acme/x\nmetadata: {a: b}\nlora: {rank: 4, priority: 3, gradient_accumulation: 2}\n"
    run = run_here(RunOptions(file=written(folder, text), cpus=2.0))
    settings = run.settings
    assert (settings["alpha"], settings["epochs"], settings["batch_size"], settings["seed"]) == (8.0, 3, 2, 0)
    assert (settings["data"], run.resources.cpus) == (folder / "train.jsonl", 2.0)
    assert capsys.readouterr().err == "Left out, as only servers have it: metadata, lora.priority.\n"
    with pytest.raises(RequestRefused, match="--priority: only servers have that"):
        run_here(RunOptions(data=folder / "train.jsonl", base="tiny", priority=2))


def trained(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "swapmeet",
        "train",
        *map(str, arguments),
        "--home",
        str(folder / "home"),
        "--json",
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SWAPMEET_")}
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=200, cwd=folder)


@pytest.mark.slow
def test_a_file_trains_here_and_a_second_run_goes_on(folder: Path, tiny_llama: Path) -> None:
    shape = "lora: {max_steps: 2, rank: 4, target_modules: [q_proj]}"
    path = written(folder, f"base: {tiny_llama}\nname: acme/x\ntraining_file: train.jsonl\n{shape}")
    done = trained(folder, "-f", path, "--rank", 2)
    assert done.returncode == 0, done.stderr
    registry = Registry(f"file://{folder}/home/registry")
    version = registry.resolve("acme/x:1")
    assert version.digest == json.loads(done.stdout)["digest"]
    assert registry.manifest(version).lora.rank == 2

    done = trained(folder, "train.jsonl", "--base", "acme/x:1", "--name", "acme/x", "--max-steps", 1)
    assert done.returncode == 0, done.stderr
    assert f"Going on from acme/x:1, {version.pinned}." in done.stderr
    second = registry.manifest(registry.resolve("acme/x:2"))
    assert (second.lora.rank, second.lora.target_modules) == (2, ("q_proj",))
    assert second.training["parent"].startswith("sha256:")
    registry.pull("acme/x:2", folder / "second")
    provenance = Provenance.read(folder / "second")
    assert provenance is not None
    assert provenance.parent == version.pinned


def test_here_too_one_goes_on_from_a_version(
    folder: Path, tiny_llama: Path, random_lora: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named as a server takes it, by an option or in a file; what an adapter keeps is its own."""
    home, data = folder / "home", folder / "train.jsonl"
    base = BaseLibrary(home).add(str(tiny_llama))
    registry = Registry(f"file://{home}/registry")
    adapter = random_lora(tiny_llama, folder / "adapter")
    version = registry.push(adapter, "acme/x", base=base.fingerprint, alias="prod")
    lora = registry.manifest(version).lora
    for ref in ("acme/x", "acme/x:1", "acme/x:prod", version.pinned):
        run = run_here(RunOptions(data=data, base=ref, home=home))
        assert (run.base, run.parent) == (base.name, version.pinned)
        assert (run.settings["rank"], run.settings["alpha"]) == (lora.rank, lora.alpha)
    file = written(folder, "base: acme/x:prod\nname: acme/y\ntraining_file: train.jsonl\n")
    run = run_here(RunOptions(file=file, home=home))
    assert (run.base, run.parent, run.settings["rank"]) == (base.name, version.pinned, lora.rank)
    assert capsys.readouterr().err.count(f"Going on from acme/x:1, {version.pinned}.") == 5
    assert run_here(RunOptions(data=data, base="acme/hub-model", home=home)).parent is None, "a Hub id"
    assert run_here(RunOptions(data=data, base=str(tiny_llama), home=home)).parent is None
    with pytest.raises(RegistryError, match="There is no acme/x:7"):
        run_here(RunOptions(data=data, base="acme/x:7", home=home))
    with pytest.raises(RequestRefused, match=f"--rank is 99, and {version.pinned} has {lora.rank}"):
        run_here(RunOptions(data=data, base="acme/x:1", rank=99, home=home))
    shutil.rmtree(home / "bases")
    with pytest.raises(RegistryError, match="the base of acme/x:1, is not known here"):
        run_here(RunOptions(data=data, base="acme/x:1", home=home))


def test_what_submits_needs_no_database(folder: Path) -> None:
    code = """
import sys
for name in ("sqlalchemy", "fastapi", "torch", "ray", "alembic", "cryptography"):
    sys.modules[name] = None
import swapmeet.cli, swapmeet.cli.job_request, swapmeet.cli.submission, swapmeet.client
"""
    subprocess.run([sys.executable, "-c", code], check=True)


SWEPT = "base: tiny\ntraining_file: train.jsonl\nvalidation_file: held-out.jsonl\n"


def test_the_example_of_a_sweep_is_whole() -> None:
    job = wanted(RunOptions(file=EXAMPLE.with_name("sweep.yaml")))
    assert job.sweep is not None
    assert (job.sweep.options.combinations, len(job.sweep.requests)) == (12, 8)
    assert {request.lora.name for request in job.sweep.requests} == {"acme/dates"}
    assert "sweep" in job.fields
    with pytest.raises(RequestRefused, match="sweep is for a server, where each configuration is a job"):
        run_here(RunOptions(file=EXAMPLE.with_name("sweep.yaml")))


def test_options_change_what_a_sweep_does_not_try(folder: Path) -> None:
    sweep = asked(folder, SWEPT + "sweep: {grid: {rank: [2, 4]}}", alpha=3.0, epochs=2.0).sweep
    assert sweep is not None
    assert [(each.lora.rank, each.lora.alpha, each.asked["n_epochs"]) for each in sweep.requests] == [
        (2, 3.0, 2),
        (4, 3.0, 2),
    ]
    message = refused(folder, SWEPT + "sweep: {grid: {rank: [2, 0], n_epochs: [1]}}", rank=8, epochs=2.0)
    assert "--rank: the file's sweep tries that. Leave one of the two out." in message
    assert "--epochs: the file's sweep tries that." in message
    assert "Configuration 2 (rank 0, n_epochs 1): lora.rank is 0" in message
    assert "sweep: keeps the best by a validation_file" in refused(folder, SMALL + "sweep: {grid: {rank: [2]}}")
