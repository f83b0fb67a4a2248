"""Regenerate the published numbers: ``python -m helpers.benchmark teacher``, ``distillation``, ``speed``.

Each row of data/results/ comes from here. A finished row is not run again; a killed run goes on from its last epoch.
"""

from __future__ import annotations

import argparse

import torch

from helpers import models, results
from helpers.data import HOME, load_data
from helpers.training import evaluate, fit

WORK = HOME / "build" / "benchmark"  # unfinished runs; ignored by git


def teacher(arguments: argparse.Namespace) -> None:
    """Train VGG-19 on CIFAR-10; write data/checkpoints/vgg19.safetensors (fp16) and vgg19_history.csv beside it."""
    data = load_data("cifar10")
    path = results.CHECKPOINTS / "vgg19.safetensors"
    if path.exists():
        print(f"{path} is there already; delete it to train anew")
        return
    torch.manual_seed(arguments.seed)
    model = models.build("vgg19")  # no label smoothing below: it would erase what a student can learn (Mueller 2019)
    epochs = arguments.epochs or (200 if torch.cuda.is_available() else 30)
    history = fit(
        model, data, epochs=epochs, lr=0.1, batch_size=128, schedule="one_cycle", warmup=0.2, seed=arguments.seed,
        checkpoint=WORK / f"teacher-{epochs}-{arguments.seed}.safetensors",
    )  # fmt: skip
    model.cpu()
    models.save(model, path, torch.float16)
    history.round(5).to_csv(path.with_name("vgg19_history.csv"), index=False)
    accuracy = evaluate(models.load(path), data.test)
    row = {"model": "vgg19", "data": data.name, "epochs": epochs, "correct": accuracy.correct, "total": accuracy.total}
    results.append("teacher", row | {"bytes": path.stat().st_size} | results.provenance(arguments.seed))
    print(f"VGG-19 on the test split: {accuracy}")


def main() -> None:
    """Parse the command line and run what it names."""
    commands = {"teacher": teacher}
    parser = argparse.ArgumentParser(prog="python -m helpers.benchmark", description=__doc__)
    parser.add_argument("what", choices=commands)
    parser.add_argument("--epochs", type=int, default=None, help="default: 200 on a GPU, 30 on a CPU")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    commands[arguments.what](arguments)


if __name__ == "__main__":
    main()
