"""Named steps of what writes, so that tests can stop a writer at each of them.

`reached(step)` does nothing unless a test sets `hook`. `STEPS` are a publish's, in
the order of one file on its way.
"""

from collections.abc import Callable

STEPS = (
    "push.checked",
    "push.intent",
    "push.spared",
    "push.blob",
    "push.blobs",
    "push.manifest",
    "push.before_head",
    "push.head",
    "push.intent_ended",
    "local.locked",
    "local.written",
    "local.synced",
    "local.renamed",
    "local.folder_synced",
    "s3.before_put",
    "s3.upload_begun",
    "s3.parts_sent",
    "s3.put",
    "s3.before_swap",
    "s3.swapped",
    "hub.created",
    "hub.uploaded",
    "hub.before_commit",
    "hub.committed",
    "hub.tagged",
)


def _nothing(step: str) -> None:
    pass


hook: Callable[[str], None] = _nothing


def reached(step: str) -> None:
    """Tell the hook that the publisher is at `step`."""
    hook(step)
