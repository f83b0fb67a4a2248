"""The small library behind the notebooks: one training loop, each compression technique one change to it."""

import logging
import os

os.environ.setdefault(
    "KINETO_LOG_LEVEL", "99"
)  # PyTorch's profiler otherwise writes its own life story to stderr
logging.getLogger("torch.utils.cpp_extension").setLevel(
    logging.ERROR
)  # it warns of a CUDA compiler without a GPU; nothing here needs it
