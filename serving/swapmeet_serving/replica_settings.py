"""What replicas are made from; it travels to their processes."""

from dataclasses import dataclass
from pathlib import Path

from swapmeet_registry.fingerprint import Fingerprint
from swapmeet_registry.signing import OFF, Trust


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many replicas there are, and how they come and go. Times are in seconds.

    Attributes:
        min_replicas: at least so many; with 0, the first call after a pause waits for a replica to start.
        max_replicas: at most so many.
        target_requests: calls under way for each replica that scaling aims at.
        upscale_delay: how long there must be too many calls before a replica is added.
        downscale_delay: how long there must be too few before one is taken away.
        drain: how long a replica that is to go may go on with its answers.
        max_queued: most calls that one gateway holds back because no replica takes them.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_requests: float = 32
    upscale_delay: float = 10
    downscale_delay: float = 600
    drain: float = 60
    max_queued: int = 512


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What a replica is made from; it travels to the replica's process.

    Attributes:
        base: folder of the base.
        fingerprint: the base's; adapters of other weights are refused.
        registry: URL of the registry.
        cache: folder for adapters, each in one named by its digest; replicas may share it.
        cache_bytes: what it may hold; those longest unused go.
        cpus: what Ray sets aside for the replica.
        threads: CPU threads of a forward pass; all of the machine's if None.
        exact: compute in the very order of transformers and PEFT, bit for bit, and slower.
        tool_format: how chat templates that know tools have calls written; "auto" looks at their text.
        step_timeout: seconds after which a step counts as stuck and the replica is replaced.
        scaling: how many replicas there are.
        trust: whose signatures adapters must bear.
    """

    base: Path
    fingerprint: Fingerprint
    registry: str
    cache: Path
    cache_bytes: int = 20 << 30
    device: str = "cpu"
    max_batch: int = 32
    max_queue: int = 256
    adapter_bytes: int = 256 << 20
    host_bytes: int = 4 << 30
    kv_bytes: int = 512 << 20
    cpus: float = 1
    threads: int | None = None
    exact: bool = False
    tool_format: str = "auto"
    step_timeout: float = 120
    scaling: Scaling = Scaling()
    trust: Trust = OFF
