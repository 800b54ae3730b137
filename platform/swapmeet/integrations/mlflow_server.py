"""A run in MLflow, through its REST API: no package of MLflow's is needed."""

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from swapmeet.errors import SinkFailed
from swapmeet.integrations.request import Mlflow
from swapmeet.integrations.sink import Point, Run

SECONDS = 10.0
MOST_METRICS = 1000
"""That one request may carry."""
STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class MlflowSink:
    """One run, found again by its tag `swapmeet.job`.

    Credentials are those of MLflow's own variables: `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and
    `MLFLOW_TRACKING_PASSWORD`; or those in the URL.

    Args:
        url: the tracking server's.
        wanted: what the job asked for; its experiment is the tenant's own.
        run: the job.

    Raises:
        SinkFailed: the server does not answer, or refuses.
    """

    def __init__(self, url: str, wanted: Mlflow, run: Run) -> None:
        self._http = _client(url)
        try:
            experiment = self._experiment(f"{run.tenant}/{wanted.experiment}")
            self._run = self._find(experiment, run) or self._create(experiment, wanted, run)
        except SinkFailed:
            self.close()
            raise

    def log(self, points: Sequence[Point]) -> None:
        """Send points; MLflow keeps what it has of the same step and moment once."""
        metrics = [
            {"key": name, "value": value, "timestamp": _milliseconds(point.at), "step": point.step}
            for point in points
            for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            body = {"run_id": self._run, "metrics": metrics[start : start + MOST_METRICS]}
            self._call("POST", "runs/log-batch", body)

    def end(self, state: str, at: datetime) -> None:
        """Set the run's status and end."""
        body = {"run_id": self._run, "status": STATUS[state], "end_time": _milliseconds(at)}
        self._call("POST", "runs/update", body)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _experiment(self, name: str) -> str:
        found = self._call("GET", f"experiments/get-by-name?{httpx.QueryParams(experiment_name=name)}", missing={})
        if found:
            return str(found["experiment"]["experiment_id"])
        return str(self._call("POST", "experiments/create", {"name": name})["experiment_id"])

    def _find(self, experiment: str, run: Run) -> str | None:
        wanted = {"experiment_ids": [experiment], "filter": f"tags.`swapmeet.job` = '{run.job}'", "max_results": 1}
        runs = self._call("POST", "runs/search", wanted).get("runs") or []
        return str(runs[0]["info"]["run_id"]) if runs else None

    def _create(self, experiment: str, wanted: Mlflow, run: Run) -> str:
        ours = {"swapmeet.job": run.job, "swapmeet.model": run.model, "swapmeet.adapter": run.adapter}
        body = {
            "experiment_id": experiment,
            "run_name": wanted.name or run.job,
            "start_time": _milliseconds(run.created_at),
            "tags": [{"key": key, "value": value} for key, value in (wanted.tags | ours).items()],
        }
        return str(self._call("POST", "runs/create", body)["run"]["info"]["run_id"])

    def _call(self, method: str, path: str, body: Any = None, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer's object; `missing`, where it is given and there is no such thing."""
        try:
            response = self._http.request(method, f"/api/2.0/mlflow/{path}", json=body)
        except httpx.HTTPError as error:
            raise SinkFailed(f"the MLflow server does not answer ({type(error).__name__})") from None
        if response.status_code == 404 and missing is not None:
            return missing
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code != 200 or not isinstance(answer, dict):
            code = answer.get("error_code") if isinstance(answer, dict) else None
            raise SinkFailed(f"the MLflow server answered {response.status_code}" + (f" ({code})" if code else ""))
        return answer


def _client(url: str) -> httpx.Client:
    """A client that keeps credentials out of URLs, which are logged."""
    try:
        parsed = httpx.URL(url)
        plain = parsed.copy_with(userinfo=b"")
    except (httpx.InvalidURL, UnicodeError):
        raise SinkFailed("SWAPMEET_MLFLOW is no URL") from None
    user = parsed.username or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = parsed.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    auth = (user, password) if user and not token else None
    return httpx.Client(base_url=plain, headers=headers, auth=auth, timeout=SECONDS)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
