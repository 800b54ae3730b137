"""The gateway's FastAPI app: routes, authorisation and errors; everything else is behind `Services`."""

from typing import Annotated

from fastapi import Depends, FastAPI, Response

from swapmeet.client import HEALTHY
from swapmeet.errors import PlatformError
from swapmeet.gateway import inference
from swapmeet.gateway.admission import TooManyRequests
from swapmeet.gateway.body_limit import BodyLimit
from swapmeet.gateway.errors import InvalidApiKey, InvalidRequest, install_error_handlers
from swapmeet.gateway.services import Services, services
from swapmeet_registry import RegistryError
from swapmeet_serving import ServingError


def create_app(backend: Services) -> FastAPI:
    """An app over the given services."""
    app = FastAPI(title="Swapmeet", docs_url="/docs", redoc_url=None)
    app.add_middleware(BodyLimit)
    app.state.services = backend
    install_error_handlers(
        app, RegistryError, ServingError, PlatformError, InvalidApiKey, InvalidRequest, TooManyRequests
    )
    app.include_router(inference.router)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The gateway itself is up."""
        return HEALTHY

    @app.get("/readyz")
    async def readyz(response: Response, backend: Annotated[Services, Depends(services)]) -> dict[str, str]:
        """Requests are answered; where no engine runs because nobody asked, `asleep`, which this does not end."""
        try:
            state = await backend.replicas.state()
        except Exception as error:
            response.status_code = 503
            return {"status": "unavailable", "reason": type(error).__name__}
        return {"status": state}

    return app
