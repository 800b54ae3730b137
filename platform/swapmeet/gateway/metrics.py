"""`/metrics`: what every process of the application measured, in Prometheus' or OpenMetrics' text form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from swapmeet.gateway.services import Services, services
from swapmeet_serving.metrics import Distribution, Family, Snapshot, Value

router = APIRouter()
KINDS: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
    "summary": SummaryMetricFamily,
}


@router.get("/metrics")
async def metrics(request: Request, backend: Annotated[Services, Depends(services)]) -> Response:
    """All measurements of this application."""
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    snapshots = Snapshots(await backend.replicas.measurements())
    page = await run_in_threadpool(encode, snapshots)  # tens of milliseconds with several replicas
    return Response(page, headers={"content-type": media_type})


@dataclass(frozen=True)
class Snapshots(Collector):
    """Snapshots as Prometheus' metrics: one family of each name, each process's series under its own label."""

    snapshots: Sequence[Snapshot]

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client's encoders."""
        found: dict[str, Any] = {}
        for snapshot in self.snapshots:
            for family in snapshot.families:
                metric = found.get(family.name)
                if metric is None:
                    metric = found[family.name] = _empty(family, snapshot.role)
                for labels, value in family.points.items():
                    _add(metric, [*labels, snapshot.id], value)
        return iter(found.values())


def _empty(family: Family, role: str) -> Any:
    return KINDS[family.kind](family.name, family.help, labels=[*family.labels, role])


def _add(metric: Any, labels: list[str], value: Value) -> None:
    if not isinstance(value, Distribution):
        metric.add_metric(labels, value)
    elif isinstance(metric, SummaryMetricFamily):
        metric.add_metric(labels, count_value=value.count, sum_value=value.sum)
    else:
        metric.add_metric(labels, buckets=value.cumulated(), sum_value=value.sum)
