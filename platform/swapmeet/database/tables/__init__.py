"""Every table. Ids are made by whoever inserts, moments are UTC, amounts are whole numbers of their unit."""

from swapmeet.database.tables.adapters import ChangeRow, PublishRow, ReaderRow
from swapmeet.database.tables.base import Table
from swapmeet.database.tables.files import FileRow, PartRow, UploadRow
from swapmeet.database.tables.integrations import SinkRow
from swapmeet.database.tables.jobs import CheckpointRow, EventRow, JobRow, LeaseRow, PermissionRow
from swapmeet.database.tables.marketplace import DownloadRow, LikeRow
from swapmeet.database.tables.sweeps import SweepRow, SweepRunRow
from swapmeet.database.tables.tenancy import AuditChainRow, AuditRow, KeyRow, SpendingRow, TenantRow, UsageRow
from swapmeet.database.tables.webhooks import DeliveryRow, WebhookRow

__all__ = [
    "AuditChainRow",
    "AuditRow",
    "ChangeRow",
    "CheckpointRow",
    "DeliveryRow",
    "DownloadRow",
    "EventRow",
    "FileRow",
    "JobRow",
    "KeyRow",
    "LeaseRow",
    "LikeRow",
    "PartRow",
    "PermissionRow",
    "PublishRow",
    "ReaderRow",
    "SinkRow",
    "SpendingRow",
    "SweepRow",
    "SweepRunRow",
    "Table",
    "TenantRow",
    "UploadRow",
    "UsageRow",
    "WebhookRow",
]
