"""The floor of `api.py`: the same rows by plain FastAPI and SQLAlchemy, as a tutorial has it.

    python benchmarks/training/api_floor.py DATABASE_URL PORT

No keys, no checks, no audit log, no idempotency, no request log, no queue: one row for a job and three for its events,
written and read in sessions of each route's own (as dependencies, as tutorials have them, two hundred clients bring
threads and connections to a standstill). SQLite is as durable as the platform's: a write-ahead log, synchronous.
"""

import sys
from typing import Any
from uuid import uuid4

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import create_engine, event, select
from sqlalchemy.orm import Session, sessionmaker

from swapmeet.database.tables import CheckpointRow, EventRow, JobRow, Table, TenantRow
from swapmeet.fine_tuning.wire import checkpoint_object, event_object, job_object

TENANT = "floor"


class Body(BaseModel):
    """What is read of a submission."""

    model: str
    training_file: str
    metadata: dict[str, str]


def app(url: str) -> FastAPI:
    """The whole server."""
    engine = create_engine(url)
    if url.startswith("sqlite"):
        event.listen(engine, "connect", durable)
    Table.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    with sessions.begin() as session:
        session.merge(TenantRow(name=TENANT))
    api = FastAPI()

    @api.post("/v1/fine_tuning/jobs")
    def create(body: Body) -> dict[str, Any]:
        with sessions() as session:
            row = JobRow(
                id=f"ftjob-{uuid4().hex}", tenant=TENANT, created_by="", request_digest="", model=body.model,
                base=body.model, adapter="", training_file=body.training_file, method="supervised", seed=0,
                hyperparameters={}, lora={}, settings={}, resources={}, plan={}, job_metadata=dict(body.metadata),
                integrations=[], state="queued",
            )  # fmt: skip
            session.add(row)
            session.flush()
            for name in ("created", "validating", "queued"):
                session.add(EventRow(id=f"ftevent-{uuid4().hex}", job=row.id, name=name, message=name))
            session.commit()
            return job_object(row)

    @api.get("/v1/fine_tuning/jobs")
    def jobs(limit: int = 20, after: str | None = None) -> dict[str, Any]:
        with sessions() as session:
            query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)
            if after and (last := session.get(JobRow, after)):
                query = query.where(JobRow.created_at < last.created_at)
            rows = session.scalars(query).all()
            return {"data": [job_object(row) for row in rows[:limit]], "has_more": len(rows) > limit}

    @api.get("/v1/fine_tuning/jobs/{job}")
    def job(job: str) -> dict[str, Any]:
        with sessions() as session:
            return job_object(_there(session, job))

    @api.get("/v1/fine_tuning/jobs/{job}/events")
    def events(job: str) -> dict[str, Any]:
        with sessions() as session:
            query = select(EventRow).where(EventRow.job == job).order_by(EventRow.number.desc()).limit(20)
            return {"data": [event_object(row) for row in session.scalars(query)]}

    @api.get("/v1/fine_tuning/jobs/{job}/checkpoints")
    def checkpoints(job: str) -> dict[str, Any]:
        with sessions() as session:
            rows = session.scalars(select(CheckpointRow).where(CheckpointRow.job == job).limit(10))
            return {"data": [checkpoint_object(row) for row in rows]}

    @api.post("/v1/fine_tuning/jobs/{job}/cancel")
    def cancel(job: str) -> dict[str, Any]:
        with sessions() as session:
            row = _there(session, job)
            row.state = "cancelled"
            session.add(EventRow(id=f"ftevent-{uuid4().hex}", job=row.id, name="cancel", message="cancelled"))
            session.commit()
            return job_object(row)

    return api


def durable(connection: Any, _: Any) -> None:
    """What the platform sets as well."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _there(session: Session, job: str) -> JobRow:
    row = session.get(JobRow, job)
    if row is None:
        raise HTTPException(404)
    return row


if __name__ == "__main__":
    uvicorn.run(app(sys.argv[1]), port=int(sys.argv[2]), access_log=False, log_level="warning")
