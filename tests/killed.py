"""The process that test_training kills: imported once by a fork server, so that each child starts in a moment."""

import sklearn.datasets  # noqa: F401  (load_data would import it in every child)
import torch

from helpers import models
from helpers.data import load_data
from helpers.training import fit


def train(path, answers):
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.2)
    data = load_data("digits", train_limit=512)
    answers.put("ready")
    fit(model, data, epochs=8, batch_size=32, checkpoint=path, progress=False)
    answers.put(models.digest(model.state_dict()))
