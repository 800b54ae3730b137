"""What may be tried, and what each mistake is told as."""

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapmeet.errors import RequestRefused
from swapmeet.sweeps.request import MOST_RUNS, OPTIONS, Sweep, SweepOptions, applied, parse_sweep

BASE: dict[str, Any] = {"model": "tiny", "training_file": "file-1", "validation_file": "file-2"}
GRID = {"rank": [4, 8], "learning_rate": [1e-4, 1e-3], "n_epochs": [1, 2]}


def parsed(sweep: Any, **more: Any) -> Sweep:
    return parse_sweep({**BASE, **more, "sweep": sweep})


def refused(sweep: Any, **more: Any) -> str:
    with pytest.raises(RequestRefused) as caught:
        parsed(sweep, **more)
    return str(caught.value)


def test_a_grid_is_every_combination_in_order() -> None:
    sweep = parsed({"grid": GRID}, lora={"dropout": 0.1, "rank": 2})
    assert len(sweep.requests) == sweep.options.combinations == 8
    assert list(map(dict, sweep.configurations[:3])) == [
        {"rank": 4, "learning_rate": 1e-4, "n_epochs": 1},
        {"rank": 4, "learning_rate": 1e-4, "n_epochs": 2},
        {"rank": 4, "learning_rate": 1e-3, "n_epochs": 1},
    ]
    assert list(sweep.configurations[0]) == list(GRID)
    last = sweep.requests[-1]
    assert (last.lora.rank, last.lora.learning_rate, last.lora.dropout, last.asked["n_epochs"]) == (8, 1e-3, 0.1, 2)


def test_configurations_change_what_they_name() -> None:
    tried = [{}, {"rank": 32, "alpha": None}, {"target_modules": ["q_proj"], "seed": 3}]
    sweep = parsed({"configurations": tried}, lora={"rank": 4, "alpha": 5.0}, seed=1)
    assert [request.lora.rank for request in sweep.requests] == [4, 32, 4]
    assert [request.lora.alpha for request in sweep.requests] == [5.0, None, 5.0]
    assert [request.seed for request in sweep.requests] == [1, 1, 3]
    assert sweep.requests[2].lora.target_modules == ["q_proj"]


@pytest.mark.parametrize(
    "method",
    [
        {"hyperparameters": {"batch_size": 8}},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 8}}}},
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"batch_size": 8}}}},
    ],
)
def test_hyper_parameters_go_where_the_request_has_them(method: dict[str, Any]) -> None:
    before = copy.deepcopy(method)
    first, second = parsed({"grid": {"learning_rate_multiplier": [0.5, 2]}}, **method).requests
    assert (first.asked["batch_size"], first.asked["learning_rate_multiplier"]) == (8, 0.5)
    assert second.asked["learning_rate_multiplier"] == 2
    assert method == before


def test_of_a_large_grid_some_are_drawn_the_same_for_the_same_seed() -> None:
    large = {"rank": list(range(1, 51)), "alpha": list(range(1, 51)), "dropout": [each / 50 for each in range(50)]}
    assert f"there are {50**3} configurations, where {MOST_RUNS} can be run" in refused({"grid": large})
    first, again, other = (parsed({"grid": large, "max_runs": 9, "seed": seed}).configurations for seed in (1, 1, 2))
    assert len({json.dumps(each) for each in first}) == 9
    assert first == again != other
    assert len(parsed({"grid": GRID, "max_runs": 9}).requests) == 8
    listed = [{"rank": rank} for rank in range(1, 200)]
    assert len(parsed({"configurations": listed, "max_runs": 3}).requests) == 3
    assert "199 configurations" in refused({"configurations": listed})


def test_all_mistakes_are_told_at_once_with_their_configurations() -> None:
    message = refused(
        {"grid": {"rank": [4, 9999], "learning_rate": [1e-4, 5], "n_epochs": [1, 2]}}, lora={"dropout": 7}, colour="red"
    )
    assert "lora.dropout is 7 but should be less than 1." in message
    assert message.count("lora.dropout") == 1, "what all have in common is told once"
    assert "colour is no parameter" in message
    assert "Configurations 3, 4, 7 and 8: lora.learning_rate is 5 but should be less than or equal to 1." in message
    assert "Configurations 5, 6, 7 and 8: lora.rank is 9999 but should be less than or equal to 512." in message
    message = refused({"configurations": [{}, {"rank": "x"}, {"init": "pissa", "dora": True}]})
    assert "Configuration 2 (rank 'x'): lora.rank is 'x' but should be a valid integer." in message
    assert "Configuration 3 (init 'pissa', dora True): lora.init: pissa sets the base's weights anew" in message
    many = {"grid": {"rank": [0], "alpha": list(range(1, 12)), "learning_rate": [0.1, 7]}}
    assert "Configurations 2, 4, 6, 8, 10 and 6 more: lora.learning_rate" in refused(many)


@pytest.mark.parametrize(
    ("sweep", "more", "says"),
    [
        (None, {}, "sweep is missing. Add it."),
        ({}, {}, "sweep.configurations: and grid are both missing"),
        ({"grid": {"rank": [1]}, "configurations": [{}]}, {}, "and grid are both given"),
        ({"grid": {"colour": [1]}}, {}, "sweep.grid: 'colour' can not be tried. Try some of n_epochs,"),
        ({"grid": {"name": ["a/b"]}}, {}, "'name' can not be tried"),
        ({"configurations": [{"colour": 1}]}, {}, "sweep.configurations: 'colour' can not be tried"),
        ({"grid": {"rank": []}}, {}, "sweep.grid.rank is []"),
        ({"grid": {"rank": 8}}, {}, "sweep.grid.rank is 8 but should be a valid list"),
        ({"grid": {}}, {}, "sweep.grid is {}"),
        ({"configurations": []}, {}, "sweep.configurations is []"),
        ({"grid": {"rank": [4, 4]}}, {}, "sweep.grid: rank names 4 twice"),
        ({"configurations": [{"rank": 4}, {}, {"rank": 4}]}, {}, "sweep.configurations: 1 and 3 are the same"),
        ({"grid": {"rank": [{"a": 1}]}}, {}, "sweep.grid.rank.0: is no value of an option"),
        ({"grid": {"rank": [4]}, "metric": "bleu"}, {}, "sweep.metric is 'bleu'"),
        ({"grid": {"rank": [4]}, "max_runs": 101}, {}, "sweep.max_runs is 101"),
        ({"grid": {"rank": [4]}, "metrics": 1}, {}, "sweep.metrics is no parameter; known are grid, configurations"),
        ({"grid": {"rank": [4]}}, {"validation_file": None}, "sweep: keeps the best by a validation_file. Give one;"),
        (
            {"grid": {"learning_rate": [1e-4, 1e-3]}},
            {"hyperparameters": {"learning_rate_multiplier": 2}},
            "learning_rate and learning_rate_multiplier are both given",
        ),
        ({"grid": {"beta": [0.1, 0.5]}}, {"method": {"type": "dpo"}}, "losses with different beta do not compare"),
        ({"grid": {"beta": [0.1, 0.5]}, "metric": "valid_accuracy"}, {}, "hyperparameters.beta is no parameter"),
    ],
)
def test_what_does_not_go_is_refused_in_words(sweep: Any, more: dict[str, Any], says: str) -> None:
    assert says in refused(sweep, **more)


def test_without_a_validation_file_the_training_loss_has_to_be_asked_for() -> None:
    sweep = parsed({"grid": {"rank": [4, 8]}, "metric": "train_loss"}, validation_file=None)
    assert len(sweep.requests) == 2


def test_every_mistake_of_request_and_sweep_is_told_together() -> None:
    message = refused({"grid": {"colour": [1]}, "metric": "bleu"}, lora={"rank": 0}, seed=-1)
    for says in ("'colour' can not be tried", "sweep.metric is 'bleu'", "lora.rank is 0", "seed is -1"):
        assert says in message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(OPTIONS) | st.text(max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "grid": st.dictionaries(NAMES, st.lists(JSON, max_size=3), max_size=3) | JSON,
            "configurations": st.lists(st.dictionaries(NAMES, JSON, max_size=3), max_size=3) | JSON,
            "metric": JSON,
            "max_runs": JSON,
            "seed": JSON,
        },
    )
    | JSON,
    st.dictionaries(st.sampled_from(["lora", "method", "hyperparameters", "seed"]), JSON, max_size=2),
)
def test_nothing_that_json_can_say_is_more_than_refused(sweep: Any, more: dict[str, Any]) -> None:
    with suppress(RequestRefused):
        parse_sweep({**BASE, **more, "sweep": sweep})


@given(st.dictionaries(st.sampled_from(OPTIONS), st.lists(st.integers(), min_size=1, max_size=4, unique=True),
                       min_size=1, max_size=4))  # fmt: skip
def test_no_combination_is_left_out_or_doubled(grid: dict[str, list[int]]) -> None:
    if "beta" in grid:
        return
    chosen = SweepOptions.model_validate({"grid": grid, "max_runs": 100}).chosen()
    assert len({json.dumps(each) for each in chosen}) == len(chosen)
    total = 1
    for values in grid.values():
        total *= len(values)
    assert len(chosen) == min(total, 100)
    assert all(list(each) == list(grid) for each in chosen)


def test_a_request_is_not_changed_by_what_is_tried() -> None:
    request = {"lora": {"rank": 2}, "method": {"type": "supervised"}}
    before = copy.deepcopy(request)
    assert applied(request, {"rank": 4, "n_epochs": 2})["lora"] == {"rank": 4}
    assert request == before
