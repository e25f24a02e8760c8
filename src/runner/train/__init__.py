"""The loop over epochs and batches, and all that knows a batch."""
