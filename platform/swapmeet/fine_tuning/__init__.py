"""Fine-tuning jobs as they are asked for: one schema, and the way from a request to a job's row and back."""

from swapmeet.fine_tuning.models import Models
from swapmeet.fine_tuning.request import JobRequest, parse_request
from swapmeet.fine_tuning.rows import JobRequests
from swapmeet.fine_tuning.settling import settle

__all__ = ["JobRequest", "JobRequests", "Models", "parse_request", "settle"]
