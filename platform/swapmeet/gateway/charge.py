"""What a request for an answer costs: a place among those under way, a part of the minute, and its tokens."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from swapmeet.gateway.answers import Tally
from swapmeet.gateway.authority import Caller, may
from swapmeet.gateway.services import services_of
from swapmeet.tenancy import Tenancy
from swapmeet_serving.mix import Mix


@dataclass(slots=True)
class Charge:
    """One request's account.

    Args:
        caller: who pays.
        headers: what its answer says of the caller's rates.
    """

    caller: Caller
    headers: dict[str, str]
    _tenancy: Tenancy
    _models: list[tuple[str, str]] = field(default_factory=list)

    def model(self, mix: Mix, base: str) -> None:
        """Note what answers: adapters, each with its owner, or the base, which nobody owns."""
        names = [adapter.partition("@")[0] for adapter, _ in mix]
        self._models = [(name, name.partition("/")[0]) for name in names] or [(base, "")]

    def settle(self, tally: Tally) -> None:
        """Count what was computed for an answer, or a part of one, that has ended."""
        used = tally.usage
        prompt, output = used["prompt_tokens"], used["completion_tokens"]
        self._tenancy.ledger.count(self.caller, self._models, prompt, output)
        self._tenancy.rates.spend(self.caller.tenant, self.caller.limits, prompt + output)


async def admit(request: Request, caller: Annotated[Caller, Depends(may("infer"))]) -> AsyncIterator[Charge]:
    """Let a request of a caller's begin, and count it until its answer has gone out.

    Raises:
        RateLimited: the tenant had its requests or tokens of the minute.
        TooManyRequests: too many of its requests are under way.
    """
    backend = services_of(request)
    headers = backend.tenancy.rates.take(caller.tenant, caller.limits)
    with backend.admission.admit(caller.tenant):
        yield Charge(caller, headers, backend.tenancy)
