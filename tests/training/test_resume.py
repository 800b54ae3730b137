"""A run that was interrupted, parked or short of memory ends as if it had not been, bit for bit; or it is refused."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from swapmeet_training import CheckpointError, FineTune, OutOfMemory, Parked, Progress, Result, RunFailed, run
from swapmeet_training.checkpoint import Standing, digests

torch = pytest.importorskip("torch")

MakeSpec = Callable[..., FineTune]


class Interrupted(Exception):
    """Stops a run from outside, as a kill would."""


def interrupt_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Interrupted

    return report


def ending(result: Result) -> dict[str, Any]:
    """All that a run leaves, but for times."""
    run_folder = result.adapter.parent
    return {
        "weights": (result.adapter / "adapter_model.safetensors").read_bytes(),
        "metrics": {name: value for name, value in result.metrics.items() if name != "tokens_per_second"},
        "tokens": result.trained_tokens,
        "steps": result.steps,
        "rows": (run_folder / "metrics.csv").read_text(),
        "losses": (run_folder / "losses.jsonl").read_text(),
        "worst": result.worst,
        "notes": result.notes,
    }


@contextmanager
def memory_for(rows: int, cuda: bool = True) -> Iterator[None]:
    """Micro-batches of more rows than this meet the allocator's error, raised through torch's hook on all modules."""

    def hook(module: Any, inputs: Any) -> None:
        if type(module) is torch.nn.Embedding and len(inputs[0]) > rows:
            if cuda:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


ALL = {"dropout": 0.1, "packing": True, "max_length": 64, "batch_size": 2, "gradient_accumulation": 2, "epochs": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cosine": {"dropout": 0.1, "gradient_accumulation": 2, "schedule": "cosine", "epochs": 5},
    "paged 32 bit": ALL | {"optimizer": "paged_adamw_32bit"},
    "paged 8 bit": ALL | {"optimizer": "paged_adamw_8bit", "rank": 32},
    "torch": ALL | {"optimizer": "adamw_torch", "weight_decay": 0.1},
    "pissa": {"dropout": 0.1, "init": "pissa"},
    "dora": {"dropout": 0.1, "dora": True},
    "not the best": {"keep_best": False, "learning_rate": 0.3},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(make_spec: MakeSpec, tmp_path: Path, name: str) -> None:
    spec = make_spec(**{"examples": 24, "save_every": 2, "eval_every": 1, "epochs": 1, **SETTINGS[name]})
    whole = run(spec, tmp_path / "whole")
    assert whole.steps > 3

    with pytest.raises(RunFailed):
        run(spec, tmp_path / "cut", report=interrupt_at(3))
    elsewhere = shutil.copytree(tmp_path / "cut" / "checkpoint-2", tmp_path / "stored" / "checkpoint-2")
    shutil.rmtree(tmp_path / "cut")
    told: list[Progress] = []
    resumed = run(spec, tmp_path / "other", report=told.append, resume_from=elsewhere)

    assert told[0].step == 3
    assert resumed.resumed_from == 2
    assert ending(resumed) == ending(whole)


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("with_parent", [False, True])
def test_an_interrupted_dpo_run_ends_as_an_uninterrupted_one(
    make_spec: MakeSpec,
    write_jsonl: Callable[..., Path],
    random_lora: Callable[..., Path],
    tiny_llama: Path,
    tmp_path: Path,
    with_parent: bool,
) -> None:
    rows = [{"prompt_ids": [5, 6, n], "chosen_ids": [n, 8, 2], "rejected_ids": [9, n, 9, 2]} for n in range(10, 26)]
    settings: dict[str, Any] = {"method": "dpo", "dropout": 0.1, "data": write_jsonl("pairs.jsonl", *rows[:12])}
    settings |= {"validation": write_jsonl("held.jsonl", *rows[12:]), "save_every": 2, "gradient_accumulation": 2}
    if with_parent:
        settings |= {"parent": random_lora(tiny_llama, tmp_path / "parent", rank=4, lora_alpha=32)}
    spec = make_spec(batch_size=2, learning_rate=1e-3, **settings)
    whole = run(spec, tmp_path / "whole")
    with pytest.raises(RunFailed):
        run(spec, tmp_path / "cut", report=interrupt_at(3))
    resumed = run(spec, tmp_path / "cut", resume_from=tmp_path / "cut" / "checkpoint-2")
    assert ending(resumed) == ending(whole)


def test_a_parked_run_ends_as_one_that_was_not(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(dropout=0.1, save_every=100)
    whole = run(spec, tmp_path / "whole")
    parked, checkpoint = 0, None
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) % 3 == 0)
        return asked[-1]

    while not isinstance(ended := run(spec, tmp_path / "run", stop=stop, resume_from=checkpoint), Result):
        assert isinstance(ended, Parked)
        assert ended.checkpoint == tmp_path / "run" / f"checkpoint-{ended.step}"
        parked, checkpoint = parked + 1, ended.checkpoint
    assert parked == 3, "before the first step, and after every second one but the last"
    assert ending(ended) == ending(whole)


def test_a_run_that_was_out_of_memory_is_one_of_smaller_micro_batches(make_spec: MakeSpec, tmp_path: Path) -> None:
    settings = {"examples": 24, "epochs": 1, "dropout": 0.1, "save_every": 2}
    small = run(make_spec(batch_size=2, gradient_accumulation=4, **settings), tmp_path / "small")
    told: list[Progress] = []
    with memory_for(3):
        halved = run(make_spec(batch_size=8, **settings), tmp_path / "halved", report=told.append)
    assert [progress.note for progress in told[1:]] == [""] * (len(told) - 1)
    assert "Out of memory in step 1: micro-batches have 4 rows instead of 8" in told[0].note
    assert "micro-batches have 2 rows instead of 4" in told[0].note
    assert len(halved.notes) == 2
    assert ending(halved) | {"notes": ()} == ending(small), "the same steps on the same examples"
    checkpoint = tmp_path / "halved" / "checkpoint-2"
    resumed = run(make_spec(batch_size=8, **settings), tmp_path / "resumed", resume_from=checkpoint)
    assert ending(resumed) == ending(halved), "a resumed run knows what fits"


@pytest.mark.parametrize("cuda", [True, False])
def test_one_row_that_does_not_fit_ends_the_run(make_spec: MakeSpec, tmp_path: Path, cuda: bool) -> None:
    with memory_for(0, cuda), pytest.raises(OutOfMemory, match=r"not even with one row at a time\. Lower max_length"):
        run(make_spec(), tmp_path / "run")


def test_an_evaluation_that_does_not_fit_is_halved_too(make_spec: MakeSpec, tmp_path: Path) -> None:
    """More rows are evaluated at once than are trained on here."""
    whole = run(make_spec(batch_size=4, examples=3, epochs=2), tmp_path / "whole")
    with memory_for(3):
        result = run(make_spec(batch_size=4, examples=3, epochs=2), tmp_path / "run")
    assert len(result.notes) == 1
    assert result.metrics["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], rel=1e-2)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that needs them: specs, checkpoints in mid-run and at the end, and the right endings."""
    return {"folder": tmp_path_factory.mktemp("scenarios")}


@pytest.fixture
def kept(scenarios: dict[str, Any], make_spec: MakeSpec) -> dict[str, Any]:
    """A run that gets worse and is stopped early, a step before that; and the end of one that keeps the last."""
    folder = scenarios["folder"]
    if "middle" not in scenarios:
        settings = {"examples": 16, "eval_every": 1, "save_every": 1, "epochs": 3, "dropout": 0.1}
        spec = make_spec(early_stopping=3, learning_rate=0.5, **settings)
        data = {name: folder / f"{name}.jsonl" for name in ("data", "validation")}
        for name, path in data.items():
            path.write_bytes(getattr(spec, name).read_bytes())
        middle = spec.model_copy(update=data)
        end = middle.model_copy(update={"keep_best": False, "early_stopping": None})
        for name, of, before_end in (("middle", middle, 1), ("end", end, 0)):
            with memory_for(2):
                result = run(of, folder / name, keep=None)
            scenarios[name] = of, folder / name / f"checkpoint-{result.steps - before_end}", ending(result)
        assert scenarios["middle"][2]["metrics"]["best_step"] + 3 == scenarios["middle"][2]["steps"] < 12
    return scenarios


def test_a_file_that_is_missing_changed_or_new_is_told(kept: dict[str, Any], tmp_path: Path) -> None:
    spec, checkpoint, expected = kept["middle"]
    assert ending(run(spec, tmp_path / "run", resume_from=checkpoint)) == expected
    files = [path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file()]
    assert len(files) == 10
    for number, file in enumerate(files):
        for change in ("missing", "changed"):
            copy = shutil.copytree(checkpoint, tmp_path / f"{number}-{change}" / checkpoint.name)
            if change == "missing":
                (copy / file).unlink()
            elif file.name != "swapmeet.json":
                content = bytearray((copy / file).read_bytes())
                content[len(content) // 2] ^= 1
                (copy / file).write_bytes(content)
            else:
                continue
            with pytest.raises(CheckpointError, match=r"whole checkpoint|not as it was written"):
                run(spec, tmp_path / "run", resume_from=copy)
    more = shutil.copytree(checkpoint, tmp_path / "more" / checkpoint.name)
    (more / ".state" / "mine.txt").touch()
    with pytest.raises(CheckpointError, match=r"\.state/mine\.txt is missing, changed or new"):
        run(spec, tmp_path / "run", resume_from=more)


def sealed(checkpoint: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    """A copy of a checkpoint with a change that its digests know of."""
    copy = shutil.copytree(checkpoint, folder / checkpoint.name)
    change(copy / ".state")
    (copy / ".state" / "files.json").write_text(json.dumps(digests(copy)))
    return copy


def forgets(entry: str) -> Callable[[Path], None]:
    """Sets an entry of the standing back to what it was before the first step."""

    def change(state: Path) -> None:
        standing = json.loads((state / "standing.json").read_text())
        standing[entry] = asdict(Standing(micro_batch=4))[entry]
        (state / "standing.json").write_text(json.dumps(standing))

    return change


def lacks(name: str, *endings: str) -> Callable[[Path], None]:
    """Leaves tensors out of a file."""

    def change(state: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(state / f"{name}.safetensors")
        left = {key: tensor for key, tensor in tensors.items() if not key.endswith(endings)}
        assert len(left) < len(tensors)
        save_file(left, state / f"{name}.safetensors")

    return change


def lacks_file(name: str) -> Callable[[Path], None]:
    return lambda state: os.unlink(state / name)


def lacks_rows(state: Path) -> None:
    (state / "metrics.csv").write_text("step,train_loss\n")


LEFT_OUT: dict[str, Callable[[Path], None]] = {
    **{f"standing {entry}": forgets(entry) for entry in Standing.__dataclass_fields__},
    "first moments": lacks("optimizer", ":state1"),
    "second moments": lacks("optimizer", ":state2"),
    "counted steps": lacks("optimizer", ":step"),
    "a weight's state": lacks("optimizer", "layers.0.mlp.up_proj.lora_B.default.weight:state1"),
    "the optimizer": lacks("optimizer", ""),
    "random numbers": lacks("random", "state"),
    "losses": lacks("losses", "nats"),
    "their tokens": lacks("losses", "tokens"),
    "epochs": lacks("losses", "epochs"),
    "the best": lacks_file("best.safetensors"),
    "rows": lacks_rows,
}
AT_THE_END = {"standing loss", "standing evaluation"}
"""What a run needs only once all steps are made."""


@pytest.mark.parametrize("what", LEFT_OUT)
def test_nothing_that_is_kept_can_be_left_out(kept: dict[str, Any], tmp_path: Path, what: str) -> None:
    """Without it, and with digests that hide that, a run is refused or ends otherwise: it is kept for a reason."""
    spec, checkpoint, expected = kept["end" if what in AT_THE_END else "middle"]
    changed = sealed(checkpoint, tmp_path, LEFT_OUT[what])
    try:
        result = run(spec, tmp_path / "run", resume_from=changed)
    except (CheckpointError, RunFailed):
        return
    assert ending(result) != expected
