"""The small library behind the notebooks: one training loop, and each compression technique as one change to it."""
