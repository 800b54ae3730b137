"""One fine-tune, step by step: batches, losses, optimizers, checkpoints."""
