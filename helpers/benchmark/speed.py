"""How fast the loop is beside the one that people would write otherwise; timed on a CPU."""

import time
from dataclasses import replace
from itertools import islice

import torch
import torch.nn.functional as F

from helpers import models
from helpers.benchmark import results
from helpers.benchmark.bench import Bench
from helpers.data import CIFAR10_MEAN, CIFAR10_STD, cifar10_root, load_data
from helpers.training import fit

BATCH, STEPS = 256, 12


def race(bench: Bench) -> None:
    """Time fit against the loop of PyTorch's CIFAR-10 tutorial: DataLoader, two workers, float32, SGD.

    Appends a row; says so and does nothing where a GPU would train.
    """
    if results.state().device.type != "cpu":
        print("speed is timed on the CPU: give --device cpu")
        return
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    data = load_data("cifar10", train_limit=BATCH * STEPS)
    data = replace(data, validation=data.validation.take(slice(0, 500)))
    model = models.build("vgg19")
    warm_up = replace(data, train=data.train.take(slice(0, 2 * BATCH)))
    fit(model, warm_up, epochs=1, batch_size=BATCH, progress=False)
    ours = fit(model, data, epochs=1, batch_size=BATCH, progress=False)["images_per_second"][0]
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])
    loader = torch.utils.data.DataLoader(
        CIFAR10(cifar10_root(), transform=transform), BATCH, shuffle=True, num_workers=2
    )
    model = models.build("vgg19").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    for step, (inputs, labels) in enumerate(islice(loader, 2 + STEPS)):
        if step == 2:
            started = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    theirs = BATCH * STEPS / (time.perf_counter() - started)
    row = {
        "what": "training VGG-19",
        "unit": "pictures/s",
        "ours": round(ours, 1),
        "theirs": round(theirs, 1),
        "ratio": round(ours / theirs, 2),
        "library": "the plain loop of PyTorch's CIFAR-10 tutorial",
    }
    results.append("speed", [row | results.provenance()], bench.results)
    print("{what}: {ours} {unit}, {library} {theirs}, ratio {ratio}".format(**row))
