"""What the process of an attempt does."""

from swapmeet_training.attempts.apart import Line
from swapmeet_training.attempts.telling import Order
from swapmeet_training.attempts.worker import work


def train(line: Line, order: Order) -> None:
    """Carry out an order; all of it is told, and anything that the caller says asks to park."""
    import torch

    torch.set_num_threads(order.resources.threads)
    work(order, line.say, line.told.is_set)
