"""Sweeps: many runs of one config, planned, run in worker processes, continued and summed up."""
