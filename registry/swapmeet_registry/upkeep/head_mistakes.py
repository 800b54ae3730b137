"""What contradicts itself in a head: nothing that Swapmeet writes does."""

from collections.abc import Iterator

from swapmeet_registry.head import Head


def mistakes(head: Head) -> Iterator[str]:
    """What contradicts itself in a head."""
    numbers = [record.version for record in head.versions]
    if numbers != list(range(1, len(numbers) + 1)):
        yield "its versions are not numbered 1, 2, 3 and so on."
    if len({record.digest for record in head.versions}) < len(numbers):
        yield "two versions have the same digest."
    for alias, number in sorted(head.aliases.items()):
        if not 1 <= number <= len(numbers):
            yield f"the alias {alias} points to version {number}, which does not exist."
    moved = {move.alias: move.version for move in head.history}
    if {alias: number for alias, number in moved.items() if number} != head.aliases:
        yield "its aliases are not where their history says that they were moved last."
    if (head.visibility == "shared") != bool(head.shared_with):
        yield f"it is {head.visibility}, and names {len(head.shared_with)} tenants to be shared with."
