"""What lies on disk: a run's folder, its checkpoints and its records, and who may write there."""
