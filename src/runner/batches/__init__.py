"""Which examples, in which order, as tensors."""
