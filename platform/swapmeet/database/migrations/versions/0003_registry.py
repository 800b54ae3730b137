"""The registry over HTTP: readers, changes, publishes, a quota of versions; likes and downloads; the search index.

The audit log becomes a chain.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

from swapmeet_registry.index.tables import recreate

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

START = "0" * 64


def upgrade() -> None:
    """Go forward."""
    adapters()
    audit_chain()
    marketplace()


def adapters() -> None:
    """Readers, changes and publishes of adapters, and how many versions a tenant may have."""
    op.create_table(
        "adapter_readers",
        sa.Column("name", sa.String(length=130), nullable=False),
        sa.Column("reader", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", "reader", name=op.f("pk_adapter_readers")),
    )
    op.create_index("ix_adapter_readers_reader_name", "adapter_readers", ["reader", "name"], unique=False)
    op.create_table(
        "adapter_publishes",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("adapter", sa.String(length=130), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("digest", sa.String(length=80), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name=op.f("fk_adapter_publishes_tenant_tenants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_publishes")),
    )
    op.create_index("ix_adapter_publishes_tenant_status", "adapter_publishes", ["tenant", "status"], unique=False)
    op.create_table(
        "adapter_changes",
        sa.Column("name", sa.String(length=130), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", "digest", name=op.f("pk_adapter_changes")),
    )
    op.add_column("tenants", sa.Column("stored_versions", sa.BigInteger(), nullable=True))
    op.add_column("tenants", sa.Column("adapter_versions", sa.BigInteger(), server_default="0", nullable=False))


def marketplace() -> None:
    """Count likes and downloads; make the index, which the server fills: also how later versions change its tables."""
    op.create_table(
        "adapter_likes",
        sa.Column("adapter", sa.String(length=127), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("adapter", "tenant", name=op.f("pk_adapter_likes")),
    )
    op.create_table(
        "adapter_downloads",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("adapter", sa.String(length=127), nullable=False),
        sa.PrimaryKeyConstraint("digest", "day", "tenant", name=op.f("pk_adapter_downloads")),
    )
    op.create_index("ix_adapter_downloads_adapter_day", "adapter_downloads", ["adapter", "day"], unique=False)
    recreate(op.get_bind())


def audit_chain() -> None:
    """Chain what stands in the audit log already, in the order in which it came, and what will."""
    chains = op.create_table(
        "audit_chains",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("anchor_sequence", sa.BigInteger(), nullable=False),
        sa.Column("anchor_hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_audit_chains")),
    )
    op.add_column("audit", sa.Column("operation", sa.String(length=80), server_default="", nullable=False))
    op.add_column("audit", sa.Column("sequence", sa.BigInteger(), server_default="0", nullable=False))
    for name in ("previous", "hash"):
        op.add_column("audit", sa.Column(name, sa.String(length=64), server_default="", nullable=False))
    ends = _chain_all()
    if ends:
        op.bulk_insert(
            chains,
            [
                {"tenant": tenant, "sequence": number, "hash": end, "anchor_sequence": 0, "anchor_hash": START}
                for tenant, (number, end) in sorted(ends.items())
            ],
        )
    op.create_index("ix_audit_tenant_sequence", "audit", ["tenant", "sequence"], unique=True)


def _chain_all() -> dict[str, tuple[int, str]]:
    """Give every entry its place; a thousand at a time. Gives where each tenant's log ends."""
    texts = ("tenant", "actor", "key", "action", "subject", "outcome", "request", "detail", "operation")
    audit = sa.table(
        "audit",
        sa.column("id", sa.BigInteger),
        sa.column("at", sa.DateTime(timezone=True)),
        *(sa.column(name, sa.String) for name in (*texts, "previous", "hash")),
        sa.column("sequence", sa.BigInteger),
    )
    connection, ends, last = op.get_bind(), dict[str, tuple[int, str]](), 0
    change = audit.update().where(audit.c.id == sa.bindparam("row"))
    while rows := connection.execute(
        sa.select(audit).where(audit.c.id > last).order_by(audit.c.id).limit(1000)
    ).mappings().all():  # fmt: skip
        changes = []
        for row in rows:
            number, previous = ends.get(row["tenant"], (0, START))
            entry: dict[str, Any] = {name: row[name] for name in texts}
            entry |= {"at": _moment(row["at"]), "sequence": number + 1, "previous": previous}
            found = hashlib.sha256(
                json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            ).hexdigest()
            ends[row["tenant"]] = number + 1, found
            changes.append({"row": row["id"], "sequence": number + 1, "previous": previous, "hash": found})
        connection.execute(
            change.values(
                sequence=sa.bindparam("sequence"), previous=sa.bindparam("previous"), hash=sa.bindparam("hash")
            ),
            changes,
        )
        last = rows[-1]["id"]
    return ends


def _moment(at: datetime) -> str:
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def downgrade() -> None:
    """There is no way back."""
    raise NotImplementedError("Restore the database from before the upgrade instead.")
