"""What a fine-tune will need before it starts: tokens, steps, peak memory by part, time, cost and a place.

    from swapmeet_training.plan import GPUS, plan_job

    plan = plan_job(Path("bases/llama-3.1-8b"), {"rank": 64}, Path("dates.jsonl"), None, nodes=(), hardware=GPUS["L4"])
    plan.memory.parts, plan.seconds, plan.cost, plan.words

From the base's config.json and tokenizer alone: weights are never loaded, nor is torch.
"""

from swapmeet_training.plan.batches import Batch, Row, Unit
from swapmeet_training.plan.hardware import GPUS, Hardware, cpu
from swapmeet_training.plan.lengths import Lengths, lengths_of
from swapmeet_training.plan.machine import (
    Machine,
    gpu_called,
    named,
    of_accelerator,
    own_gpus,
    own_hardware,
    this_machine,
)
from swapmeet_training.plan.memory import Memory, peak_memory
from swapmeet_training.plan.placement import Node, Placement
from swapmeet_training.plan.planned import Planned
from swapmeet_training.plan.planning import Plan, fitting, make_plan, plan_job, plan_of, planned_job
from swapmeet_training.plan.settings import Adapter, RunSettings
from swapmeet_training.plan.shape import BaseShape
from swapmeet_training.plan.shrinking import shrink

__all__ = [
    "GPUS",
    "Adapter",
    "BaseShape",
    "Batch",
    "Hardware",
    "Lengths",
    "Machine",
    "Memory",
    "Node",
    "Placement",
    "Plan",
    "Planned",
    "Row",
    "RunSettings",
    "Unit",
    "cpu",
    "fitting",
    "gpu_called",
    "lengths_of",
    "make_plan",
    "named",
    "of_accelerator",
    "own_gpus",
    "own_hardware",
    "peak_memory",
    "plan_job",
    "plan_of",
    "planned_job",
    "shrink",
    "this_machine",
]
