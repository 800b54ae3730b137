"""Throughput and memory with 10 to 10,000 registered adapters, of which 32 fit into memory.

    python benchmarks/serving/many_adapters.py [--counts 10 100 1000 10000] [--requests 200] [--at-once 16]
                                               [--tokens 32] [--rounds 3] [--exponent 1.0]

Which adapter a request wants follows Zipf's law: the k-th most popular is asked for in proportion to 1 / k^exponent.
A round keeps so many requests under way until all are done; a new one comes for each that ends. Every count has a
process and an engine of its own, idle while the others take their turns; counts take turns round by round. Answers
are half to one and a half times `--tokens` long: with equal lengths, and every adapter in memory, requests would begin
and end in step, and their prompts be computed all at once.

10,000 adapters of 20 MB would fill the disk with 200 GB of random numbers, so each is a folder of its own with hard
links to one of eight sets of weights. The engine cannot tell: it fetches, checks, loads and evicts every identity by
itself. What it does spare is the disk, because eight files stay in the system's page cache; `cold_and_hot.py` measures
the way from disk and from S3.
"""

import itertools
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import (
    Answer,
    Side,
    adapter_bytes,
    bench_base,
    gauge,
    parser,
    prompts,
    random_adapter,
    report,
    resident_memory,
    serve_side,
)

WEIGHTS = 8
IN_MEMORY = 32


def main() -> None:
    """Start a side for each count, let them take turns, print a table, end with one JSON line."""
    parse = parser(__doc__)
    parse.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parse.add_argument("--requests", type=int, default=200)
    parse.add_argument("--at-once", type=int, default=16)
    parse.add_argument("--tokens", type=int, default=32)
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--exponent", type=float, default=1.0)
    parse.add_argument("--side", nargs=2, metavar=("COUNT", "FOLDER"), help="for the script itself")
    options = parse.parse_args()
    if options.side:
        serve_side(lambda: side(int(options.side[0]), Path(options.side[1]), options.exponent))
        return
    base = bench_base().path
    work = {"requests": options.requests, "at_once": options.at_once, "tokens": options.tokens}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for seed in range(WEIGHTS):
            random_adapter(base, Path(folder) / f"weights-{seed}", seed)
        command = [sys.executable, Path(__file__), "--exponent", str(options.exponent), "--side"]
        sides = {count: stack.enter_context(Side(*command, str(count), folder)) for count in options.counts}
        for each in sides.values():
            each.ask(**work)
        rounds = [{count: each.ask(**work) for count, each in sides.items()} for _ in range(options.rounds)]
    show(rounds, options.rounds, work)


def show(rounds: list[dict[int, dict[str, float]]], count: int, work: dict[str, int]) -> None:
    """The table and the line; medians of the rounds."""
    columns = {"tokens_per_second": 1, "hit_rate": 3, "loads": 0, "resident_mb": 0, "bank_mb": 1}
    rows = {
        adapters: {
            name: round(sorted(each[adapters][name] for each in rounds)[count // 2], digits)
            for name, digits in columns.items()
        }
        for adapters in rounds[0]
    }
    first = next(iter(rows.values()))["tokens_per_second"]
    print(f"\n{'adapters':>8} {'relative':>9}", *(f"{name:>17}" for name in columns))
    for adapters, row in rows.items():
        row["relative"] = round(row["tokens_per_second"] / first, 3)
        print(f"{adapters:>8} {row['relative']:>9}", *(f"{row[name]:>17}" for name in columns))
    report("many_adapters", **work, rounds=count, in_memory=IN_MEMORY, adapters=rows)


def side(count: int, folder: Path, exponent: float) -> Answer:
    """An engine with so many adapters to fetch; each answer is one round."""
    from swapmeet_serving import Engine

    base, own = bench_base().path, folder / f"of-{count}"
    for number in range(count):
        link(folder / f"weights-{number % WEIGHTS}", own / str(number))
    engine = Engine(base, fetch=own.joinpath, adapter_bytes=IN_MEMORY * adapter_bytes(base))
    ids, chance = prompts(engine.tokenizer, 64), random.Random(count)
    popularity = list(itertools.accumulate(1 / rank**exponent for rank in range(1, count + 1)))
    numbers = itertools.count()

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        wanted = chance.choices(range(count), cum_weights=popularity, k=question["requests"])
        lengths = [chance.randint(question["tokens"] // 2, 3 * question["tokens"] // 2) for _ in wanted]
        before = loads(engine)
        start = time.perf_counter()
        resident = run(engine, list(zip(wanted, lengths, strict=True)), ids, numbers, question["at_once"])
        seconds = time.perf_counter() - start
        return {
            "tokens_per_second": sum(lengths) / seconds,
            "hit_rate": resident / len(wanted),
            "loads": loads(engine) - before,
            "resident_mb": resident_memory(),
            "bank_mb": gauge(engine, "swapmeet_adapter_memory_used_bytes") / 1e6,
        }

    return answer


def link(weights: Path, folder: Path) -> None:
    """A folder with the same files, without their bytes a second time."""
    folder.mkdir(parents=True)
    for path in weights.iterdir():
        os.link(path, folder / path.name)


def run(engine: Any, wanted: list[tuple[int, int]], ids: list[list[int]], numbers: Any, at_once: int) -> int:
    """Answer requests for these adapters and of these lengths; says how many found their adapter in memory."""
    from swapmeet_serving import Request, Sampling

    coming, found = iter(wanted), 0

    def submit(adapter: int, tokens: int) -> None:
        number, sampling = next(numbers), Sampling(max_tokens=tokens, ignore_eos=True)
        engine.submit(Request(str(number), tuple(ids[number % len(ids)]), str(adapter), sampling))

    for each in itertools.islice(coming, at_once):
        submit(*each)
    while engine.busy:
        engine.wait()
        for output in engine.step():
            if output.error:
                raise output.error
            if output.finish_reason:
                found += output.timeline.resident
                for each in itertools.islice(coming, 1):
                    submit(*each)
    return found


def loads(engine: Any) -> int:
    """How many adapters were read into memory so far."""
    steps = next(family.points for family in engine.families() if family.name == "swapmeet_load_step_seconds")
    return steps[("read",)].count if ("read",) in steps else 0


if __name__ == "__main__":
    main()
