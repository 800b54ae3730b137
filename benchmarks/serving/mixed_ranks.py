"""What adapters of ranks 4 to 128 cost in one batch, against the same batch with all of rank 16 and all of rank 128.

    python benchmarks/serving/mixed_ranks.py [--each 2] [--tokens 64] [--rounds 5] [--peft]

Every request has an adapter of its own, `--each` of every rank. An engine that pads adapters to the largest rank would
need for the mixed batch what this one needs for rank 128 alone; if cost follows the sum of ranks, milliseconds that
adapters add to a step, divided by that sum, are the same on every line. The sides take turns, round by round;
`--peft` adds PEFT's `adapter_names` on the mixed batch.
"""

import tempfile
from pathlib import Path

from measure import (
    Round,
    adapter_bytes,
    bench_base,
    decode,
    parser,
    prompts,
    random_adapter,
    report,
    rounded,
    take_turns,
)

from swapmeet_serving import Engine

RANKS = (4, 8, 16, 32, 64, 128)


def main() -> None:
    """Measure, print a table, end with one JSON line."""
    parse = parser(__doc__)
    parse.add_argument("--each", type=int, default=2, help="adapters of each rank")
    parse.add_argument("--tokens", type=int, default=64)
    parse.add_argument("--rounds", type=int, default=5)
    parse.add_argument("--peft", action="store_true")
    options = parse.parse_args()
    base, requests = bench_base().path, len(RANKS) * options.each
    batches = {
        "no adapter": [],
        "all 16": [16] * requests,
        "mixed": [rank for rank in RANKS for _ in range(options.each)],
        "all 128": [128] * requests,
    }
    names = {name: [f"{rank}-{place}" for place, rank in enumerate(ranks)] for name, ranks in batches.items()}
    with tempfile.TemporaryDirectory() as folder:
        folders = {
            each: random_adapter(base, Path(folder) / each, seed, rank=int(each.partition("-")[0]))
            for seed, each in enumerate(sorted({each for batch in names.values() for each in batch}))
        }
        budget = adapter_bytes(base, rank=sum(map(sum, batches.values())))
        engine = Engine(base, fetch=folders.__getitem__, adapter_bytes=budget)
        ids = prompts(engine.tokenizer, requests)

        def side(adapters: list[str]) -> Round:
            return lambda: decode(engine, ids, adapters, options.tokens)

        sides = {name: side(adapters) for name, adapters in names.items()}
        if options.peft:
            from mixed_batch import Peft

            peer = Peft(base, [folders[each] for each in names["mixed"]], engine.tokenizer.pad_token_id)
            own = [str(index) for index in range(requests)]
            sides["mixed, peft"] = lambda: peer.generate(ids, own, options.tokens)
        seconds = take_turns(sides, options.rounds)
    sums = {name: sum(ranks) for name, ranks in batches.items()}
    show(requests, options.tokens, sums | {"mixed, peft": sums["mixed"]}, seconds)


def show(requests: int, tokens: int, sums: dict[str, int], seconds: dict[str, list[float]]) -> None:
    """The table and the line: milliseconds of a step, and what of them adapters add, also per unit of rank."""
    steps = rounded({name: [1000 * each / tokens for each in values] for name, values in seconds.items()})
    print(f"\n{'batch':12} {'sum of ranks':>12} {'tokens/s':>9} {'ms a step':>9} {'added ms':>9} {'µs a rank':>9}")
    added, per_rank = {}, {}
    for name, step in steps.items():
        added[name] = round(step - steps["no adapter"], 2)
        rate = f"{1000 * requests / step:9.1f}"
        per_rank[name] = round(1000 * added[name] / sums[name], 2) if sums[name] else 0.0
        print(f"{name:12} {sums[name]:12} {rate} {step:9.2f} {added[name]:9.2f} {per_rank[name]:9.2f}")
    padded = added["mixed"] / added["all 128"]
    print(
        f"\nMixed ranks cost {padded:.0%} of padding to 128; their sum is {sums['mixed'] / sums['all 128']:.0%} of it."
    )
    shown = {name.replace(" ", "_").replace(",", ""): value for name, value in steps.items()}
    report("mixed_ranks", requests=requests, tokens=tokens, step_ms=shown, mixed_over_padded=round(padded, 3))


if __name__ == "__main__":
    main()
