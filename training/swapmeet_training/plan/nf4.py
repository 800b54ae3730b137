"""What a base takes in memory: linear layers as NF4 with double quantization, all else in 16 bits."""

from math import prod

from swapmeet_training.plan.shape import BaseShape

BLOCK, SUPERBLOCK = 64, 256
CODES = 4 * (16 + 256 + 1)
"""The two code books and the offset of the block constants, in fp32, that each layer has."""


def nf4_bytes(elements: int) -> int:
    """Half a byte each, an 8-bit constant for every 64, and an fp32 one for every 256 of these."""
    blocks = -(-elements // BLOCK)
    return -(-elements // 2) + blocks + 4 * -(-blocks // SUPERBLOCK) + CODES


def base_bytes(shape: BaseShape) -> int:
    """The base as `load_nf4` holds it; what is not quantized is in bfloat16."""
    linears = [prod(size) for size in shape.linears.values()]
    return sum(map(nf4_bytes, linears)) + 2 * (shape.parameters - sum(linears))
