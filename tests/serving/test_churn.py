"""Days of traffic in a minute: everything comes, goes and fails at once, and every answer stays what it is alone.

One tiny engine takes random arrivals of several tenants, cancellations at any point, adapters that are published anew
under their names while the old ones still run, fetches that fail, too few pages and too little room for adapters.
Each answer is compared token for token with what the same engine gives for the same request alone, so an answer by
another adapter, another version or another request's keys and values shows. Then everything must have been given back.

It computes in bfloat16, the default: there a row's results were never seen to depend on the rows beside it, and this
test would show it. Nothing promises the same of float32, whose sums may differ in their last bits with the batch, so
that two tokens that are all but equally likely change places.

`SWAPMEET_TEST_CHURN_STEPS` says how many steps it takes; 100,000 take some minutes.
"""

import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from swapmeet_serving import Engine, Output, Request, Sampling, adapters
from swapmeet_serving.adapter_ledger import LIMIT
from swapmeet_serving.errors import Overloaded, TooManyRequests
from swapmeet_serving.mix import Mix

CHURN_STEPS = int(os.environ.get("SWAPMEET_TEST_CHURN_STEPS", "6000"))
WARM = 0.3
"""The part of the steps after which nothing may grow any more."""

TINY = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
NAMES = ("acme/a", "acme/b", "zeta/c", "zeta/d")
CONTENTS = 3
"""Versions with contents of their own; the next has the first's again, under an identity of its own."""

MIXES: tuple[tuple[tuple[str, float], ...], ...] = (
    (),
    *(((name, 1.0),) for name in NAMES),
    (("acme/a", 0.5),),
    (("acme/a", 0.7), ("acme/b", 0.3)),
    (("acme/b", -0.5), ("zeta/d", 1.5)),
)
START = tuple(n * n % 300 + 5 for n in range(40))
PROMPTS = (START[:15], START[:33], (*START, 9, 8, 7, 6, 5, 4, 3))
"""They share their first pages; two of them soon need another page, and then another."""
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=1.3, seed=7),
    Sampling(temperature=0.9, top_p=0.9, top_k=40, seed=8, repetition_penalty=1.3),
)
LENGTHS = (1, 2, 7, 20, 22, 22)
MOST_TOKENS = max(LENGTHS)
TENANTS = ("acme", "zeta")
END_OF_TEXT = tuple(range(2, 20))
"""Many, so that answers end by them."""

Contents = tuple[tuple[str, int, float], ...]
Combination = tuple[Contents, int, int]
Table = dict[Combination, tuple[int, ...]]


class FetchFailed(OSError):
    """What a fetch raises here."""


@dataclass
class Market:
    """Adapters by name, each with versions that follow one another; fetching one fails now and then."""

    folders: dict[tuple[str, int], Path]
    random: random.Random
    versions: Counter[str] = field(default_factory=Counter)
    failures: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def identity(self, name: str) -> str:
        """The present version's."""
        return f"{name}@sha256:{self.versions[name]:064x}"

    def content(self, identity: str) -> tuple[str, int]:
        name, _, version = identity.partition("@sha256:")
        return name, int(version, 16) % CONTENTS

    def fetch(self, identity: str) -> Path:
        with self.lock:
            fails, pause = self.random.random() < self.failures, self.random.choice((0, 0, 0, 0.005))
        time.sleep(pause)  # long enough for steps, cancellations and new versions in between
        if fails:
            raise FetchFailed(identity)
        return self.folders[self.content(identity)]


@dataclass
class Asked:
    """A request under way: what its whole answer would be, and what came of it."""

    request: Request
    expected: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)

    def take(self, output: Output) -> None:
        self.tokens += output.token_ids
        assert tuple(self.tokens) == self.expected[: len(self.tokens)], self.request
        if output.finish_reason == "error":
            assert isinstance(output.error, FetchFailed), output.error
        elif output.finish_reason in ("stop", "length"):
            assert len(self.tokens) == len(self.expected), self.request


class Churn:
    """Traffic by a dice, and its answers."""

    def __init__(self, engine: Engine, market: Market, table: Table, dice: random.Random) -> None:
        self.engine, self.market, self.table, self.dice = engine, market, table, dice
        self.asked: dict[str, Asked] = {}
        self.ended: Counter[str] = Counter()
        self.number = 0

    def run(self, steps: int) -> None:
        """So many steps, with something happening before most of them."""
        for _ in range(steps):
            self._happen()
            self.step()

    def drain(self) -> None:
        while self.engine.busy:
            self.step()
        assert not self.asked, "a request got no last output"

    def step(self) -> None:
        self.engine.wait(1)
        for output in self.engine.step():
            self.asked[output.request_id].take(output)
            if output.finish_reason:
                del self.asked[output.request_id]
                self.ended[output.finish_reason] += 1

    def _happen(self) -> None:
        dice = self.dice
        if not self.engine.busy or dice.random() < (0.8 if len(self.asked) < 14 else 0.02):
            self._ask()
        if self.asked and dice.random() < 0.03:
            self.engine.cancel(dice.choice(list(self.asked)))
        if dice.random() < 0.01:
            self.market.versions[dice.choice(NAMES)] += 1
        if dice.random() < 0.001:
            self.market.failures = dice.choice((0.0, 0.0, 0.1, 0.9))

    def _ask(self) -> None:
        dice, self.number = self.dice, self.number + 1
        mix = tuple((self.market.identity(name), weight) for name, weight in dice.choice(MIXES))
        prompt, sampling = dice.randrange(len(PROMPTS)), dice.randrange(len(SAMPLINGS))
        contents = tuple((*self.market.content(identity), weight) for identity, weight in mix)
        most, ignore_eos = dice.choice(LENGTHS), dice.random() < 0.5
        chosen = replace(SAMPLINGS[sampling], max_tokens=most, ignore_eos=ignore_eos)
        expected = self.table[contents, prompt, sampling][:most]
        if not ignore_eos:
            expected = up_to_the_end(expected)
        request = Request(str(self.number), PROMPTS[prompt], mix, chosen, dice.choice(TENANTS))
        try:
            self.engine.submit(request)
        except (Overloaded, TooManyRequests):
            return
        self.asked[request.id] = Asked(request, expected)


@pytest.fixture(scope="module")
def folders(
    tiny_llama: Path, random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[tuple[str, int], Path]]:
    """A base as small as can be, and the contents of every name's versions."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("churn")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        **TINY,
        initializer_range=0.15,
        tie_word_embeddings=True,
        eos_token_id=list(END_OF_TEXT),
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder / "base")
    contents = {}
    for place, name in enumerate(NAMES):
        for version in range(CONTENTS):
            where = folder / name / str(version)
            seed = place * CONTENTS + version
            contents[name, version] = random_lora(folder / "base", where, rank=2 + place, seed=seed)
    return folder / "base", contents


def reference(engine: Engine, folders: dict[tuple[str, int], Path]) -> Table:
    """What each request gets alone: of a tenant of its own, so that it finds no prefix."""
    table: Table = {}
    for contents in every_content():
        mix: Mix = tuple((str(folders[name, version]), weight) for name, version, weight in contents)
        for prompt in range(len(PROMPTS)):
            for sampling in range(len(SAMPLINGS)):
                key = contents, prompt, sampling
                chosen = replace(SAMPLINGS[sampling], max_tokens=MOST_TOKENS, ignore_eos=True)
                request = Request("alone", PROMPTS[prompt], mix, chosen, tenant=str(key))
                engine.submit(request)
                table[key] = tuple(token for output in until_idle(engine) for token in output.token_ids)
    return table


def up_to_the_end(tokens: tuple[int, ...]) -> tuple[int, ...]:
    place = next((place for place, token in enumerate(tokens) if token in END_OF_TEXT), len(tokens))
    return tokens[: place + 1]


def every_content() -> Iterator[Contents]:
    """Every mix of every version's content."""
    for mix in MIXES:
        for number in range(CONTENTS ** len(mix)):
            yield tuple((name, number // CONTENTS**place % CONTENTS, w) for place, (name, w) in enumerate(mix))


def until_idle(engine: Engine) -> list[Output]:
    outputs = []
    while engine.busy:
        engine.wait(1)
        outputs += engine.step()
    assert not any(output.error for output in outputs)
    return outputs


def assert_nothing_held(engine: Any) -> None:
    scheduler, loads, bank, pages = engine._scheduler, engine._adapters, engine._bank, engine._pages
    assert not scheduler.running
    assert not scheduler.waiting
    assert not engine._live
    assert not engine._live._cancelled
    assert not scheduler._fair._present
    assert pages.free == pages.count
    assert not any(pages._references)
    assert len(pages._nodes) == len(pages._keys) == pages.idle
    for _ in range(1000):  # loads that nobody waits for any more
        if not loads._under_way:
            break
        engine._wake.wait(0.01)
        engine.step()
    assert not loads._under_way
    assert not loads._at_hand, "found on disk, and nobody asks for it"
    assert len(loads._failures) <= adapters.MOST_FAILURES
    assert set(bank) == set(loads._weights) == set(engine.meter._ready)
    assert not any(room.pins for room in bank._rooms.values())
    assert bank.used == sum(room.size for room in bank._rooms.values()) <= bank.budget


def held_by_process() -> dict[str, int]:
    """What a leak would show in, and how much of it there is."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "objects": len(gc.get_objects()),
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


def room_for(engine: Any, folders: dict[tuple[str, int], Path], count: int) -> int:
    """Bytes of so many adapters, the largest first."""
    sizes = sorted(engine._adapters._open(folder, "x").size for folder in folders.values())
    return int(sum(sizes[-count:]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_answer_is_what_it_is_alone_and_nothing_is_left_behind(
    folders: tuple[Path, dict[tuple[str, int], Path]],
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapters, "FAILURE_SECONDS", 0.005)
    monkeypatch.setattr(adapters, "MOST_FAILURES", 32)
    base, contents = folders
    alone: Any = make_engine(base, adapter_bytes=64 << 20)
    table = reference(alone, contents)
    assert len(set(table.values())) > len(table) * 0.9, "the answers tell adapters, prompts and seeds apart"
    page = (4 << 20) // alone._pages.count
    market = Market(contents, random.Random(1))
    engine: Any = make_engine(
        base,
        fetch=market.fetch,
        kv_bytes=9 * page,
        adapter_bytes=room_for(alone, contents, 3),
        max_batch=8,
        max_queue=10,
        max_step_tokens=24,
    )
    churn = Churn(engine, market, table, random.Random(2))
    warm = int(CHURN_STEPS * WARM)
    churn.run(warm)
    churn.drain()
    assert_nothing_held(engine)
    before = held_by_process()
    churn.run(CHURN_STEPS - warm)
    churn.drain()
    assert_nothing_held(engine)
    after = held_by_process()

    scheduler = engine._scheduler
    assert scheduler.preemptions > CHURN_STEPS // 1000
    assert scheduler.prefix_hits > CHURN_STEPS // 1000
    for outcome in ("stop", "length", "cancelled", "error"):
        assert churn.ended[outcome] > CHURN_STEPS // 2000, churn.ended
    assert sum(market.versions.values()) > CHURN_STEPS // 200
    assert len(engine.meter._adapters._rows) <= LIMIT
    assert after["threads"] <= before["threads"]
    assert after["files"] <= before["files"]
    assert after["objects"] - before["objects"] < max(2000, churn.number // 20), (before, after)
    assert after["memory"] - before["memory"] < 24 << 20, (before, after)


@pytest.mark.slow
def test_a_thousand_swaps_later_still_the_same_bits(
    folders: tuple[Path, dict[tuple[str, int], Path]],
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, contents = folders
    one, other = contents["zeta/d", 0], contents["zeta/d", 1]
    probe: Any = make_engine(base)
    engine: Any = make_engine(base, adapter_bytes=room_for(probe, {("", 0): one, ("", 1): other}, 1))
    seen: list[Tensor] = []
    run = engine._runner.run

    def watched(*arguments: Any) -> Any:
        logits = run(*arguments)
        seen.append(logits.next.clone())
        return logits

    monkeypatch.setattr(engine._runner, "run", watched)

    def logits_of(adapter: Path, turn: int) -> list[Tensor]:
        seen.clear()
        engine.submit(Request("1", PROMPTS[2], str(adapter), Sampling(max_tokens=2), tenant=str(turn)))
        until_idle(engine)
        assert engine.resident == [str(adapter)]
        return list(seen)

    first = logits_of(one, 0)
    for turn in range(1, 1001):
        logits_of((one, other)[turn % 2], turn)
    again = logits_of(one, 0) + logits_of(one, 1001)
    prefill, step = first
    assert again[0].equal(prefill), "with the prefix out of the cache"
    assert again[2].equal(prefill)
    assert again[1].equal(step)
    assert again[3].equal(step)
    assert not logits_of(other, 0)[0].equal(prefill)
