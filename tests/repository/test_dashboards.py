"""Dashboards and the scrape job use what is really there: every metric, every label, the service's own name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from swapmeet.gateway.http_meter import HttpMeter
from swapmeet_serving.metrics import Family

REPOSITORY = Path(__file__).parents[2]
DASHBOARDS = sorted((REPOSITORY / "infra" / "dashboards").glob("*.json"))
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}
BY = re.compile(r"by \(([^)]*)\)")
LEGEND = re.compile(r"{{(\w+)}}")
SERIES = re.compile(r"swapmeet_\w+")


@pytest.fixture(scope="module")
def labels_of(tiny_llama: Path) -> dict[str, set[str]]:
    """The labels of every series that a gateway or a replica has."""
    from swapmeet_serving import Engine

    engine = Engine(tiny_llama, fetch=Path, kv_bytes=1 << 20, threads=1)
    engine.close()

    def series(families: list[Family], role: str) -> dict[str, set[str]]:
        return {
            family.name + suffix: {*family.labels, role, *({"le"} if suffix == "_bucket" else ())}
            for family in families
            for suffix in SUFFIXES[family.kind]
        }

    return series(engine.families(), "replica") | series(HttpMeter().families(), "gateway")


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_shows_only_what_exists(path: Path, labels_of: dict[str, set[str]]) -> None:
    dashboard = json.loads(path.read_text())
    for panel in panels(dashboard):
        for target in panel["targets"]:
            used = SERIES.findall(target["expr"])
            assert used, panel["title"]
            assert set(used) <= set(labels_of), panel["title"]
            wanted = {label.strip() for group in BY.findall(target["expr"]) for label in group.split(",")}
            for name in used:
                assert wanted <= labels_of[name], panel["title"]
            assert set(LEGEND.findall(target["legendFormat"])) <= wanted, panel["title"]


def test_every_metric_is_on_a_dashboard(labels_of: dict[str, set[str]]) -> None:
    shown = {name for path in DASHBOARDS for name in SERIES.findall(path.read_text())}
    missing = {re.sub("_(bucket|sum|count)$", "", name) for name in labels_of} - {
        re.sub("_(bucket|sum|count)$", "", name) for name in shown
    }
    assert missing == set()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_their_own_ids_and_places(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    every = dashboard["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in every)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_scrape_job_asks_the_service_of_the_manifests_with_a_key() -> None:
    (job,) = yaml.safe_load((REPOSITORY / "infra/prometheus/scrape.yaml").read_text())["scrape_configs"]
    service = yaml.safe_load((REPOSITORY / "infra/kubernetes/rayservice.yaml").read_text())
    port = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["port"]
    ((target,),) = [config["targets"] for config in job["static_configs"]]
    assert target == f"{service['metadata']['name']}-serve-svc.swapmeet.svc:{port}"
    assert job["metrics_path"] == "/metrics"
    assert job["authorization"]["credentials_file"]
