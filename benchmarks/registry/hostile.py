"""Hostile uploads: how long each takes to be refused, and in how much memory.

    python benchmarks/registry/hostile.py [--quick]

The uploads are those of `tests/registry/test_hostile.py`, each refused several times by one process after a sound one.
CPU time counts, as a busy machine changes it little; memory is the peak of the whole process while it looked.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests" / "registry"
sys.path.insert(0, str(TESTS))


def main() -> None:
    """Refuse all of them."""
    from test_hostile import CORPUS, CPU, MEMORY, make

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once each")
    rounds = 1 if parser.parse_args().quick else 5
    seconds: dict[str, list[float]] = {name: [] for name in CORPUS}
    peaks: dict[str, int] = dict.fromkeys(CORPUS, 0)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        folders = [place / str(number) / "adapter" for number in range(len(CORPUS) + 1)]
        for folder, change in zip(folders, [lambda _: None, *(change for change, _ in CORPUS.values())], strict=True):
            folder.mkdir(parents=True)
            change(make(folder))
        for turn in range(rounds):
            stores = [(place / f"{kind}-{turn}").as_uri() for kind in ("first", "store")]
            command = [sys.executable, str(TESTS / "admitter.py"), *stores, *map(str, folders)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            _, *lines = map(json.loads, done.stdout.splitlines())
            for name, line in zip(CORPUS, lines, strict=True):
                assert line["error"] == "Refused", (name, line)
                seconds[name].append(line["seconds"])
                peaks[name] = max(peaks[name], line["peak"])
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name in sorted(CORPUS, key=medians.__getitem__, reverse=True)[:10]:
        print(f"{name:32} {medians[name] * 1e3:7.1f} ms of CPU  {peaks[name] / 2**20:6.1f} MB")
    slowest, largest = max(medians, key=medians.__getitem__), max(peaks, key=peaks.__getitem__)
    result = {
        "uploads": len(CORPUS),
        "slowest": slowest,
        "slowest_cpu_ms": round(medians[slowest] * 1e3, 1),
        "largest": largest,
        "largest_mb": round(peaks[largest] / 2**20, 1),
        "within": medians[slowest] <= CPU and peaks[largest] <= MEMORY,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
