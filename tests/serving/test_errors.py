"""Every error keeps its promises: the project's base and a standard one, a code of its own, picklable."""

import pickle

import pytest

from swapmeet_serving import errors
from swapmeet_serving.errors import ServingError

CLASSES = [each for each in vars(errors).values() if isinstance(each, type)]


@pytest.mark.parametrize("error", CLASSES)
def test_error(error: type[ServingError]) -> None:
    assert issubclass(error, ServingError)
    assert error is ServingError or not issubclass(ServingError, error.__mro__[2])
    assert str(pickle.loads(pickle.dumps(error("What to do.")))) == "What to do."


def test_codes_are_unique_and_documented() -> None:
    assert len({each.code for each in CLASSES}) == len(CLASSES) > 5
    assert all(each.__name__ in (errors.__doc__ or "") for each in CLASSES)
