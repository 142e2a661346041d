"""A run's directory, checkpoints and processes, and what the run reports."""
