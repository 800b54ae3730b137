"""Likes and downloads of adapters, and the search index."""

import sqlalchemy as sa
from alembic import op

from swapmeet_registry.index.tables import recreate

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go forward."""
    marketplace()


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


def downgrade() -> None:
    """There is no way back."""
    raise NotImplementedError("Restore the database from before the upgrade instead.")
