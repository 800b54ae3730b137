"""Ask a running server, as an application would: with the `openai` client, many requests at once."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from openai import OpenAI

from swapmeet.demo.tasks import Example, Task

AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of held-out questions answered exactly, by the base alone and with the adapter."""

    base: float
    adapter: float


def examine(client: OpenAI, base: str, lessons: Sequence[tuple[Task, Sequence[Example]]]) -> list[Score]:
    """Ask every held-out question of its adapter and of the base, all mixed in the same batches."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [
            [
                [pool.submit(_right, client, model, task, example) for example in examples]
                for model in (base, task.adapter)
            ]
            for task, examples in lessons
        ]
        shares = [[sum(answer.result() for answer in row) / len(row) for row in rows] for rows in asked]
    return [Score(base=of_base, adapter=of_adapter) for of_base, of_adapter in shares]


def mixed_batch(client: OpenAI, base: str, tasks: Sequence[Task], each: int = 4, tokens: int = 64) -> dict[str, Any]:
    """All adapters and the base at once; returns the number of requests and tokens a second of all together."""
    models = [base, *(task.adapter for task in tasks)] * each

    def ask(model: str) -> int:
        body: Any = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Tell me a short story about a fox near the sea."}],
            max_tokens=tokens,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        return int(body.usage.completion_tokens)

    with ThreadPoolExecutor(len(models)) as pool:
        start = time.perf_counter()
        made = sum(pool.map(ask, models))
        seconds = time.perf_counter() - start
    return {"requests": len(models), "tokens_per_second": round(made / seconds, 1)}


def _right(client: OpenAI, model: str, task: Task, example: Example) -> bool:
    question, answer = example
    messages: Any = task.messages(question)
    body = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=task.longest_answer)
    return (body.choices[0].message.content or "").strip() == answer
