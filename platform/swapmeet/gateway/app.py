"""The gateway's FastAPI app: routes, authorisation and errors; everything else is behind `Services`."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, FastAPI, Response
from fastapi.concurrency import contextmanager_in_threadpool

from swapmeet.client import HEALTHY
from swapmeet.errors import PlatformError
from swapmeet.gateway import administration, files, fine_tuning, inference, job_logs, metrics, sweeps, uploads
from swapmeet.gateway.authority import may
from swapmeet.gateway.body_limit import BodyLimit
from swapmeet.gateway.errors import ANSWERS, InvalidApiKey, install_error_handlers
from swapmeet.gateway.http_meter import HttpMeter
from swapmeet.gateway.presence import ClientLeft
from swapmeet.gateway.request_trace import RequestTrace, TracedReplicas
from swapmeet.gateway.services import Services, services
from swapmeet.gateway.tuning import Tuning
from swapmeet_registry import RegistryError
from swapmeet_serving import ServingError


def create_app(
    backend: Services,
    http: HttpMeter | None = None,
    tuning: Tuning | None = None,
    *,
    metrics_public: bool = False,
    proxied: bool = False,
    background: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> FastAPI:
    """An app over the given services.

    Args:
        backend: what the routes stand on.
        http: counts the app's requests.
        tuning: what files, uploads and jobs stand on; without it those are not served.
        metrics_public: whether `/metrics` needs no key.
        proxied: whether Ray Serve's proxy stands before it.
        background: what goes on beside the requests, from before the first to after the last.
    """
    http = http or HttpMeter()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with backend.tenancy.keeping_books(), contextmanager_in_threadpool(background()):
            yield

    app = FastAPI(title="Swapmeet", docs_url="/docs", redoc_url=None, lifespan=lifespan, responses=ANSWERS)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestTrace, meter=http, proxied=proxied)  # around all others
    app.state.services = replace(backend, replicas=TracedReplicas(backend.replicas))
    install_error_handlers(app, RegistryError, ServingError, PlatformError, InvalidApiKey, ClientLeft)
    app.include_router(inference.router)
    app.include_router(administration.router)
    if tuning is not None:
        app.state.tuning = tuning
        tuned = (fine_tuning.router, job_logs.router, sweeps.router, fine_tuning.planning)
        for each in (files.router, uploads.router, *tuned):
            app.include_router(each)
    app.include_router(metrics.router, dependencies=[] if metrics_public else [Depends(may("metrics"))])

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
