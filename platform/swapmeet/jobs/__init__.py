"""Fine-tuning jobs: never lost, never doubled, never left running.

jobs.py       what callers may do with a job
states.py     the states and every move between them, pure
ending.py     ends of attempts and jobs, with usage and webhooks, in one transaction
events.py     what is told of a job, each thing once
publishing.py checkpoints and results become models
logs.py       what attempts leave to read
leftovers.py  what they left in the storage, removed in time
"""

from swapmeet.jobs.jobs import Jobs
from swapmeet.jobs.states import State

__all__ = ["Jobs", "State"]
