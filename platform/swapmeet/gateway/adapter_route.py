"""What the routes of adapters share: the name in their path, and who may pass."""

from typing import Annotated

from fastapi import Depends, Path

from swapmeet.gateway.authority import Caller, may
from swapmeet.gateway.services import Services, services
from swapmeet_registry import AdapterName

ADAPTER = "/{owner}/{adapter}"

Backend = Annotated[Services, Depends(services)]
Reader = Annotated[Caller, Depends(may("read"))]
Publisher = Annotated[Caller, Depends(may("publish"))]
Ref = Annotated[str, Path(max_length=200)]


async def adapter_name(owner: str, adapter: str) -> AdapterName:
    """The adapter of a route, as a FastAPI dependency."""
    return AdapterName(owner, adapter)


Name = Annotated[AdapterName, Depends(adapter_name)]
