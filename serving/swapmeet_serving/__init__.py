"""Serve many LoRA adapters on one shared NF4 base.

    from swapmeet_serving import Engine, Request, Sampling

    engine = Engine(base_folder, fetch=lambda identity: folder_of(identity))
    engine.submit(Request("1", prompt=(1, 2, 3), adapter="acme/legal@sha256:…", sampling=Sampling(max_tokens=8)))
    while engine.busy:
        engine.wait()
        for output in engine.step():
            print(output.text, output.finish_reason)

`Engine` knows neither Ray nor HTTP; `swapmeet_serving.deployment` puts one into a Ray Serve replica.
Importing this package imports no torch; asking for `Engine` does.
"""

from typing import TYPE_CHECKING, Any

from swapmeet_serving.calls import Call, Chunk, join
from swapmeet_serving.errors import ServingError
from swapmeet_serving.request import Candidate, Output, Request, Sampling, TokenLogprob

if TYPE_CHECKING:
    from swapmeet_serving.engine import Engine

__all__ = [
    "Call",
    "Candidate",
    "Chunk",
    "Engine",
    "Output",
    "Request",
    "Sampling",
    "ServingError",
    "TokenLogprob",
    "join",
]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from swapmeet_serving.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
