"""The memory of names that were not found: short, bounded, and the same answer."""

import pytest

from swapmeet.gateway.unknown_models import UnknownModels
from swapmeet_registry import NotFound, StoreError


class Names:
    """A look-up that knows some names."""

    def __init__(self, *known: str) -> None:
        self.known = set(known)
        self.asked: list[str] = []

    def __call__(self, name: str) -> str:
        self.asked.append(name)
        if name == "broken":
            raise StoreError("Can not read.")
        if name not in self.known:
            raise NotFound(f"There is no {name}.")
        return name.upper()


def test_what_is_missing_is_asked_for_once_until_it_is_forgotten() -> None:
    now, names = [5.0], Names("a")
    unknown = UnknownModels(2.0, clock=lambda: now[0])
    for _ in range(3):
        assert unknown.look_up("a", names) == "A"
        with pytest.raises(NotFound, match=r"^There is no b\.$"):
            unknown.look_up("b", names)
        with pytest.raises(StoreError):
            unknown.look_up("broken", names)
    assert names.asked == ["a", "b", "broken", "a", "broken", "a", "broken"]
    names.known.add("b")
    now[0] += 2.0
    assert unknown.look_up("b", names) == "B"
    names.known.clear()
    with pytest.raises(NotFound):
        unknown.look_up("a", names)


def test_it_stays_small_and_holds_on_to_nothing() -> None:
    names, unknown = Names(), UnknownModels(most=10)
    for number in range(100):
        with pytest.raises(NotFound):
            unknown.look_up(str(number), names)
    assert len(unknown) == 10
    errors = []
    for _ in range(2):
        with pytest.raises(NotFound) as caught:
            unknown.look_up("99", names)
        errors.append(caught.value)
    assert errors[0] is not errors[1], "one error raised again and again would collect everybody's traceback"
