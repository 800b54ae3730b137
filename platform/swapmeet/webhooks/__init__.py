"""Webhooks: a tenant's URLs are told of its jobs' ends, signed, in order and at least once.

announce() inserts deliveries in the transaction of what happened; Deliverer sends them, from any process.
"""

from swapmeet.webhooks.deliverer import Backoff, Deliverer
from swapmeet.webhooks.endpoints import Webhooks
from swapmeet.webhooks.events import EVENTS, announce
from swapmeet.webhooks.sender import Sender

__all__ = ["EVENTS", "Backoff", "Deliverer", "Sender", "Webhooks", "announce"]
