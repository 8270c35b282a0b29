"""Training: the loop, its optimizers and guards, checkpoints, and whole runs."""
