"""Everything that a checkpoint holds is needed: without any of it a run is refused, or ends otherwise."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from swapmeet_training import CheckpointError, FineTune, Result, RunFailed, run
from swapmeet_training.loop.checkpoint import Standing, digests

torch = pytest.importorskip("torch")

MakeSpec = Callable[..., FineTune]
Ending = Callable[[Result], dict[str, Any]]
Memory = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that needs them: specs, checkpoints in mid-run and at the end, and the right endings."""
    return {"folder": tmp_path_factory.mktemp("scenarios")}


@pytest.fixture
def kept(ending: Ending, memory_for: Memory, scenarios: dict[str, Any], make_spec: MakeSpec) -> dict[str, Any]:
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


def test_a_file_that_is_missing_changed_or_new_is_told(ending: Ending, kept: dict[str, Any], tmp_path: Path) -> None:
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


def test_a_checkpoint_of_another_kind_of_device_is_refused(kept: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    def of_a_gpu(state: Path) -> None:
        save_file({"cuda": torch.zeros(16, dtype=torch.uint8)}, state / "random.safetensors")

    spec, checkpoint, _ = kept["middle"]
    with pytest.raises(
        CheckpointError, match=r"not made on a cpu device, whose random numbers are others\. Resume it on cuda"
    ):
        run(spec, tmp_path / "run", resume_from=sealed(checkpoint, tmp_path, of_a_gpu))


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
    "random numbers": lacks("random", "cpu"),
    "losses": lacks("losses", "nats"),
    "their tokens": lacks("losses", "tokens"),
    "epochs": lacks("losses", "epochs"),
    "the best": lacks_file("best.safetensors"),
    "rows": lacks_rows,
}
AT_THE_END = {"standing loss", "standing evaluation"}
"""What a run needs only once all steps are made."""


@pytest.mark.parametrize("what", LEFT_OUT)
def test_nothing_that_is_kept_can_be_left_out(ending: Ending, kept: dict[str, Any], tmp_path: Path, what: str) -> None:
    """Without it, and with digests that hide that, a run is refused or ends otherwise: it is kept for a reason."""
    spec, checkpoint, expected = kept["end" if what in AT_THE_END else "middle"]
    changed = sealed(checkpoint, tmp_path, LEFT_OUT[what])
    try:
        result = run(spec, tmp_path / "run", resume_from=changed)
    except (CheckpointError, RunFailed):
        return
    assert ending(result) != expected
