"""Push each of several folders, and print what came of it: `admitter.py FIRST STORE FOLDER…`, one JSON line each.

A line has the error's class and words, the CPU seconds, and the peak of resident memory while it was looked at, in
bytes. A sound folder comes first, and goes into a store of its own, so that imports count for nobody.
"""

import json
import sys
import time
from pathlib import Path

from swapmeet_registry import Fingerprint, Registry

BASE = Fingerprint(name="tiny", weights="sha256:" + "a" * 64, tokenizer="sha256:" + "b" * 64)
MODULES = {f"model.layers.0.self_attn.{name}": (16, 32) for name in ("q_proj", "v_proj")}


def peak() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def main(first: str, url: str, folders: list[str]) -> None:
    for number, folder in enumerate(folders):
        registry = Registry(url if number else first)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        begin, error = time.process_time(), None
        try:
            registry.push(Path(folder), "acme/hostile", base=BASE, modules=MODULES)
        except Exception as caught:
            error = caught
        line = {"error": type(error).__name__, "words": str(error), "seconds": time.process_time() - begin}
        print(json.dumps(line | {"peak": peak()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
