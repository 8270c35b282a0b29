"""Facts about checkpoints, data and the machine, for people and for programs."""
