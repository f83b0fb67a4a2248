"""The small library behind the notebooks: one training loop, and each compression technique as one change to it."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler otherwise writes its own life story to stderr
