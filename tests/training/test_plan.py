"""A whole plan: steps, tokens, time, cost, place, and runs that are made to fit."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapmeet_training import OutOfMemory, SpecError, load_dataset
from swapmeet_training.plan import (
    GPUS,
    BaseShape,
    Lengths,
    Planned,
    Row,
    RunSettings,
    cpu,
    gpu_called,
    machine,
    make_plan,
    named,
    own_hardware,
    plan_job,
    shrink,
)

SEVEN_B = BaseShape.from_config(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "hidden_act": "silu",
    }
)


@dataclass(frozen=True)
class Node:
    id: str
    cpus: float = 8
    gpus: tuple[float, ...] = ()
    memory: int = 64 << 30


def lengths(*tokens: int) -> Lengths:
    return Lengths.exact(tuple((Row(count, count - 1, 1),) for count in tokens))


def run(tokens: int = 512, count: int = 64, gpu: str = "L4", **settings: Any) -> Planned:
    return Planned(SEVEN_B, RunSettings(**settings), lengths(*[tokens] * count), GPUS[gpu])


def test_steps_and_tokens_are_the_run_s() -> None:
    plan = make_plan(SEVEN_B, RunSettings(batch_size=4, epochs=2.5), lengths(*range(10, 20)), GPUS["H100"])
    assert (plan.examples, plan.tokens) == (10, 145)
    assert plan.steps == 8
    assert plan.trained_tokens == round(145 * 8 / 3)
    assert plan.padded_tokens > plan.trained_tokens
    assert make_plan(SEVEN_B, RunSettings(max_steps=7), lengths(9), GPUS["H100"]).steps == 7


def test_packing_makes_fewer_and_fuller_rows() -> None:
    data = lengths(*[100] * 64)
    packed = make_plan(SEVEN_B, RunSettings(batch_size=4, packing=True, max_length=1000), data, GPUS["H100"])
    plain = make_plan(SEVEN_B, RunSettings(batch_size=4, max_length=1000), data, GPUS["H100"])
    assert (plain.steps, packed.steps) == (48, 6)
    assert packed.memory.peak > plain.memory.peak
    assert packed.seconds < plain.seconds


def test_time_and_cost_follow_the_hardware() -> None:
    data = lengths(*[512] * 1000)
    slow = make_plan(SEVEN_B, RunSettings(), data, replace(GPUS["L4"], price=0.5))
    fast = make_plan(SEVEN_B, RunSettings(), data, replace(GPUS["H200"], price=3.0))
    assert slow.seconds > 3 * fast.seconds > 3 * 30
    assert slow.cost == pytest.approx(slow.seconds / 3600 * 0.5 * slow.share)
    assert "estimate" in fast.words[-1]
    measured = fast.at_speed(1000)
    assert measured.seconds == pytest.approx(30 + measured.trained_tokens / 1000)
    assert measured.hardware.measured
    assert not measured.words
    again = make_plan(SEVEN_B, RunSettings(), data, measured.hardware)
    assert again.seconds == pytest.approx(measured.seconds, rel=0.25)
    assert not again.words


@pytest.mark.parametrize(("flags", "faster"), [("fma avx512_bf16", 5), ("amx_bf16 avx2", 5), ("fma avx512f", 1)])
def test_cpus_that_multiply_in_bf16_are_planned_faster(
    flags: str, faster: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert own_hardware(0, 2).flops == faster * cpu(1 << 34, 2).flops
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    assert own_hardware(0, 2).flops == cpu(1 << 34, 2).flops


def test_checkpointing_costs_about_a_third() -> None:
    data = lengths(*[1024] * 100)
    times = [
        make_plan(SEVEN_B, RunSettings(gradient_checkpointing=on), data, GPUS["A100-80GB"]).seconds - 30
        for on in (True, False)
    ]
    assert 1.2 < times[0] / times[1] < 1.6


def test_a_run_goes_where_it_fits_most_tightly() -> None:
    nodes = [Node("big", gpus=(1.0, 1.0)), Node("shared", gpus=(0.02, 0.4)), Node("none")]
    hardware = GPUS["H100"]
    small = make_plan(SEVEN_B, RunSettings(batch_size=1), lengths(512), hardware, nodes=nodes)
    assert small.placement is not None
    assert (small.placement.node, small.placement.gpu) == ("shared", 1)
    assert small.share == small.placement.share < 0.4
    large = make_plan(
        SEVEN_B, RunSettings(batch_size=16, gradient_checkpointing=False), lengths(*[512] * 16), hardware, nodes=nodes
    )
    assert large.placement is None or large.placement.node == "big"
    waiting = make_plan(SEVEN_B, RunSettings(), lengths(512), hardware, nodes=[Node("none")])
    assert waiting.placement is None
    assert "Nothing suitable is free now" in waiting.words[0]
    on_cpu = make_plan(SEVEN_B, RunSettings(), lengths(64), cpu(64 << 30, 8), nodes=nodes)
    assert on_cpu.placement is not None
    assert on_cpu.placement.gpu is None


def test_a_run_that_fits_stays_as_it_is() -> None:
    assert shrink(run(batch_size=1), 22 << 30) == (run(batch_size=1).settings, ())


def test_the_micro_batch_is_lowered_first() -> None:
    big = run(batch_size=64)
    settings, words = shrink(big, 12 << 30)
    assert settings.batch_size < 64
    assert settings.per_step == 64
    assert settings.gradient_checkpointing
    assert "batch_size is lowered from 64" in words[1]
    assert "still trains on 64" in words[1]
    assert replace(big, settings=settings).memory.needed <= 12 << 30


def test_then_activations_are_computed_twice() -> None:
    big = run(tokens=4096, batch_size=2, gradient_checkpointing=False)
    settings, words = shrink(big, GPUS["L4"].usable)
    assert settings.gradient_checkpointing
    assert any("gradient_checkpointing is turned on" in word for word in words)


@given(batch=st.integers(1, 48), accumulation=st.integers(1, 6), gib=st.integers(8, 40), on=st.booleans())
def test_what_is_shrunk_fits_and_learns_the_same(batch: int, accumulation: int, gib: int, on: bool) -> None:
    before = run(count=8, batch_size=batch, gradient_accumulation=accumulation, gradient_checkpointing=on)
    settings, words = shrink(before, gib << 30)
    after = replace(before, settings=settings)
    assert after.memory.needed <= gib << 30
    assert (settings.per_step, after.steps) == (before.settings.per_step, before.steps)
    assert bool(words) == (settings != before.settings)
    assert (settings == before.settings) == (before.memory.needed <= gib << 30)


def test_what_can_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(OutOfMemory, match=r"needs .* at least .*base .*What would fit: hardware with .* of memory"):
        shrink(run(), 2 << 30)
    with pytest.raises(OutOfMemory, match=r"What would fit: rank \d+, or hardware") as caught:
        shrink(run(rank=512, batch_size=4), 6 << 30)
    rank = int(str(caught.value).split("rank ")[1].split(",")[0])
    assert shrink(run(rank=rank, batch_size=4), 6 << 30)
    with pytest.raises(OutOfMemory):
        shrink(run(rank=rank + 1, batch_size=4), 6 << 30)
    with pytest.raises(OutOfMemory, match=r"max_length \d+") as caught:
        shrink(run(tokens=16_384, count=2, batch_size=1), 8 << 30)
    longest = int(str(caught.value).split("max_length ")[1].split(",")[0])
    assert shrink(run(tokens=longest, count=2, batch_size=1), 8 << 30)


def test_states_that_can_leave_the_gpu_are_told() -> None:
    big = run(rank=256, batch_size=1)
    memory = replace(GPUS["L4"], memory=int((big.memory.peak - 1e9) / 0.96))
    plan = make_plan(SEVEN_B, big.settings, big.lengths, memory)
    assert plan.fits
    assert plan.share == 1
    assert "paged out" in plan.words[0]


def test_modules_that_are_not_there_are_refused() -> None:
    with pytest.raises(SpecError, match=r"'query', 'c_fc', which the base lacks.*q_proj"):
        make_plan(SEVEN_B, RunSettings(target_modules=("q_proj", "query", "c_fc")), lengths(9), GPUS["L4"])


def test_a_submitted_job(make_spec: Any, tiny_llama: Path, tmp_path: Path) -> None:
    spec = make_spec()
    base = tmp_path / "base"  # no weights in it
    shutil.copytree(tiny_llama, base, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = {"rank": 8, "batch_size": 4, "epochs": 2}
    plan = plan_job(base, settings, spec.data, spec.validation, [Node("here", gpus=(1.0,))], GPUS["T4"])
    assert plan.steps == 6
    assert plan.tokens == load_dataset(spec).tokens
    assert plan.fits
    told = json.loads(json.dumps(plan.as_dict()))
    assert told["memory"]["peak"] == sum(told["memory"]["parts"].values())
    assert told["placement"] == {"node": "here", "gpu": 0, "share": plan.share}
    assert told["settings"]["rank"] == 8
    with pytest.raises(SpecError, match=r"rank is 0.*colour is not a setting"):
        plan_job(base, {"rank": 0, "colour": 1}, spec.data, None, [], GPUS["T4"])
    with pytest.raises(OutOfMemory):
        plan_job(base, {}, spec.data, None, [], replace(GPUS["T4"], memory=600_000_000))
    with pytest.raises(OutOfMemory):
        plan_job(base, {}, spec.data, None, [], GPUS["T4"], share=0.01)


def test_gpus_go_by_the_names_that_people_and_drivers_use() -> None:
    assert named("nvidia h100").name == "H100"
    assert named("rtx4090").name == "RTX 4090"
    with pytest.raises(SpecError, match=r"'Z80', which is not known here; known are T4"):
        named("Z80")
    for name, mebibytes, known in (
        ("NVIDIA A100-SXM4-40GB", 40960, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 81920, "A100-80GB"),
        ("NVIDIA H200", 143771, "H200"),
        ("NVIDIA L40S", 46068, "L40S"),
    ):
        found = gpu_called(name, mebibytes << 20)
        assert found == replace(GPUS[known], name=name, memory=mebibytes << 20)
    assert gpu_called("Novel 1", 1 << 30).memory == 1 << 30
