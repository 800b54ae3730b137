"""Three tasks with exact answers, made from reference tables: babel's locale data, num2words, zoneinfo.

Each is a rule that a few hundred examples teach and unseen ones check. Training and held-out examples never
share a question.
"""

import json
import random
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES")
CURRENCIES = ("USD", "EUR", "GBP", "CHF", "SEK", "JPY", "BRL", "INR")
GOODS = ("chairs", "lamps", "desks", "monitors", "cables", "keyboards", "phones", "printers", "shelves", "clocks")

Example = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Task:
    """A tenant's task: what is asked (`system`), and a generator of question and answer pairs.

    `steps` are optimizer steps of its training, `longest_answer` bounds an answer in tokens.
    """

    adapter: str
    title: str
    system: str
    make: Callable[[random.Random], Example]
    steps: int
    longest_answer: int

    def split(self, training: int, held_out: int, seed: int = 0) -> tuple[list[Example], list[Example]]:
        """Distinct examples, dealt into two sets that share no question."""
        examples = dict(_distinct(self.make, random.Random(seed), training + held_out))  # noqa: S311 - no secret
        pairs = list(examples.items())
        return pairs[:training], pairs[training:]

    def messages(self, question: str) -> list[dict[str, str]]:
        """The conversation that asks one question."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": question}]

    def write(self, examples: list[Example], path: Path) -> None:
        """Examples as chat JSONL."""
        with path.open("w") as stream:
            for question, answer in examples:
                turns = [*self.messages(question), {"role": "assistant", "content": answer}]
                stream.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


def _distinct(make: Callable[[random.Random], Example], rng: random.Random, count: int) -> Iterator[Example]:
    seen: set[str] = set()
    while len(seen) < count:
        question, answer = make(rng)
        if question not in seen:
            seen.add(question)
            yield question, answer


def dated(rng: random.Random) -> Example:
    """A date as people of some country write it, and the same in ISO 8601."""
    from babel.dates import format_date

    day = date(1950, 1, 1) + timedelta(days=rng.randrange(365 * 90))
    return format_date(day, rng.choice(("long", "medium", "full")), locale=rng.choice(LOCALES)), day.isoformat()


def ordered(rng: random.Random) -> Example:
    """An order line as people write it, and its parts as strict JSON."""
    from babel.numbers import format_currency

    cities = _cities()
    parts = {"qty": rng.randrange(2, 500), "item": rng.choice(GOODS), "city": rng.choice(cities)}
    price = rng.randrange(100, 99999) / 100
    currency = rng.choice(CURRENCIES)
    money = format_currency(price, currency, "#,##0.00 ¤¤", locale="en_US", currency_digits=False)
    line = rng.choice(
        (
            "{qty} {item} to {city} at {money}",
            "{city}: {qty} x {item}, {money} each",
            "please send {qty} {item} for {money} to {city}",
        )
    ).format(**parts, money=money)
    return line, json.dumps(parts | {"price": f"{price:.2f}", "currency": currency})


def spelled(rng: random.Random) -> Example:
    """An amount of money in words, and in digits."""
    from num2words import num2words

    amount = rng.randrange(1, 10 ** rng.choice((3, 4, 5, 6))) / 100
    return num2words(amount, to="currency", lang="en", currency="USD"), f"{amount:.2f}"


def _cities() -> list[str]:
    """City names of the time zone database, which the standard library reads."""
    zones = [zone for zone in sorted(zoneinfo.available_timezones()) if zone.startswith(("Europe/", "America/"))]
    return [zone.rsplit("/", 1)[1].replace("_", " ") for zone in zones if zone.count("/") == 1]


TASKS = (
    Task("acme/dates", "dates of five locales to ISO 8601", "Date to ISO 8601.", dated, steps=110, longest_answer=12),
    Task("globex/orders", "order lines to strict JSON", "Order to JSON.", ordered, steps=60, longest_answer=48),
    Task("initech/amounts", "amounts in words to digits", "Amount to digits.", spelled, steps=100, longest_answer=10),
)
