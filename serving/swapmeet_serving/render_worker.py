"""Renders the chat templates of strangers in a process of its own, which `template_renderer` starts and may kill.

Each line of standard input is a request in JSON, each line of standard output its answer; the first line says that
all is ready. The process ends with its input, and so with whoever started it. It knows neither torch nor ray.
"""

import json
import os
import resource
import signal
import sys
from typing import Any

OUT_OF_MEMORY = 3
"""The status that the process ends with once memory was not enough: what is left of it is not worth trusting."""
LONGEST_REFUSAL = 500
SPARE_TEXT = 256 << 10
"""Characters that a template may add to four times what it was given: a long system prompt, schemas laid out."""


def longest(request: bytes) -> int:
    """How many characters may be made of a request."""
    return 4 * len(request) + SPARE_TEXT


def main(seconds: float, memory: int) -> None:
    """Answer requests, each within so many seconds of CPU time, and all within so many bytes of memory.

    A request that takes longer ends the process, by SIGPROF.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    from transformers.utils.chat_template_utils import render_jinja_template

    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):  # no more files, and no processes
        resource.setrlimit(limit, (0, 0))

    def answer(request: bytes) -> dict[str, Any]:
        try:
            ((text,), _) = render_jinja_template(add_generation_prompt=True, **json.loads(request))
            text.encode()  # no tokenizer takes half a surrogate pair
        except MemoryError:
            raise
        except Exception as error:  # a template is a program and may raise anything
            return {"refusal": f"refuses these messages: {error}"[:LONGEST_REFUSAL]}
        most = longest(request)
        return {"text": text} if len(text) <= most else {"refusal": f"gives more than {most} characters"}

    _say({})
    for request in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answered = answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answered)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode(errors="surrogatepass") + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        main(float(sys.argv[1]), int(sys.argv[2]))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
