"""One caller's flood is refused, and others are not."""

from contextlib import ExitStack

import pytest

from swapmeet.gateway.admission import Admission
from swapmeet_serving.errors import TooManyRequests


def test_a_caller_has_so_many_places_and_gets_them_back() -> None:
    admission = Admission(2)
    with ExitStack() as held:
        held.enter_context(admission.admit("one"))
        held.enter_context(admission.admit("one"))
        with pytest.raises(TooManyRequests, match="2 requests under way"), admission.admit("one"):
            pass
        with admission.admit("two"):
            pass
    with pytest.raises(KeyError), admission.admit("one"):
        raise KeyError
    with admission.admit("one"), admission.admit("one"):
        pass
    assert not admission._under_way
