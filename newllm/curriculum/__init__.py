"""One model through all levels: growing, climbing, and what it forgets."""
