"""A run's directory, its checkpoints, its processes, and what it reports."""
