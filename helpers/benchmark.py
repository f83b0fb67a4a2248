"""Regenerate the published numbers: ``python -m helpers.benchmark teacher | distillation | distillation_grid | speed``.

Each row of data/results/ comes from here. A finished row is not run again; a killed run goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from helpers import checks, models, results
from helpers.data import CIFAR10_MEAN, CIFAR10_STD, HOME, Data, Split, cifar10_root, load_data
from helpers.distillation import DistillationLoss
from helpers.series import TEACHER
from helpers.training import evaluate, fit, predict

WORK = HOME / "build" / "benchmark"  # unfinished runs; ignored by git


def teacher(arguments: argparse.Namespace) -> None:
    """Train VGG-19 on CIFAR-10; write data/checkpoints/vgg19.safetensors (fp16) and vgg19_history.csv beside it.

    ``--restart`` trains the one that is there for another cycle (a warm restart, Loshchilov and Hutter 2017) and replaces it.
    """
    data = load_data("cifar10")
    row = {"model": "vgg19", "data": data.name, "epochs": arguments.epochs or (200 if torch.cuda.is_available() else 30)}
    seed = arguments.seeds[0]
    torch.manual_seed(seed)
    # no label smoothing: it would erase what a student can learn (Mueller 2019)
    recipe = {"epochs": row["epochs"], "lr": 0.1, "batch_size": 128, "schedule": "one_cycle", "warmup": 0.2}
    if arguments.restart:
        model = models.load(TEACHER)
        row["cycle"] = int(results.read("teacher").iloc[-1]["cycle"]) + 1
        data = replace(data, train=_least_sure(model, data, seed))
        recipe |= {"lr": 0.05, "warmup": 0.1}
    else:
        row["cycle"] = 1
        if TEACHER.exists() and results.finished("teacher", {"model": "vgg19"}):
            print(f"{TEACHER} is there already; delete it to train anew, or give --restart to train it on")
            return
        model = models.build("vgg19")
    row["train_pictures"] = len(data.train)
    checkpoint = WORK / f"teacher-{row['cycle']}-{row['epochs']}-{seed}.safetensors"
    history = fit(model, data, seed=seed, checkpoint=checkpoint, **recipe)
    history.insert(0, "cycle", row["cycle"])
    table = TEACHER.with_name("vgg19_history.csv")
    if arguments.restart:
        history = pd.concat([pd.read_csv(table), history])
    with checks.atomic_path(table) as part:
        history.round(5).to_csv(part, index=False)
    models.save(model, TEACHER, torch.float16)
    accuracy = evaluate(models.load(TEACHER), data.test)
    results.append("teacher", row | {"correct": accuracy.correct, "total": accuracy.total} | results.provenance(seed))
    print(f"VGG-19 on the test split: {accuracy}")


def _least_sure(model: nn.Module, data: Data, seed: int, hard: int = 24_000, others: int = 8_000) -> Split:
    """Return the training pictures of which ``model`` is least sure, and a random draw of the others.

    Chosen by its largest probability, never by the label: the pictures it knows teach it little, but leaving out by the
    loss would leave the wrongly labelled ones in (on the order of learning: Toneva 2019).
    """
    sure = predict(model, data.train, precision="auto").softmax(1).amax(1)
    order = sure.argsort(stable=True)
    rest = order[hard:]
    draw = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:others]
    return data.train.take(torch.cat([order[:hard], rest[draw]]).sort().values)


def distillation(arguments: argparse.Namespace) -> None:
    """Train the student alone and taught, per seed, from the same start; append rows to data/results/distillation.csv."""
    for seed in arguments.seeds:
        data = load_data("cifar10", train_limit=arguments.train_limit, seed=seed)
        for arm, temperature, alpha in (("alone", 1.0, 0.0), ("taught", 4.0, 0.9)):
            row = _student_row(arguments, data, temperature, alpha) | {"arm": arm}
            if results.finished("distillation", row | {"seed": seed}):
                continue
            student = _train_student(arguments, data, temperature, alpha, seed)
            accuracy = evaluate(student, data.test)
            row |= {"correct": accuracy.correct, "total": accuracy.total}
            results.append("distillation", row | results.provenance(seed))
            print(f"seed {seed}, {arm}: {accuracy} of the test split")


def distillation_grid(arguments: argparse.Namespace) -> None:
    """Train one student per temperature and alpha; append validation accuracies to data/results/distillation_grid.csv."""
    seed = arguments.seeds[0]
    data = load_data("cifar10", train_limit=arguments.train_limit, seed=seed)
    for temperature in (1.0, 4.0, 16.0):
        for alpha in (0.1, 0.5, 0.9):
            row = _student_row(arguments, data, temperature, alpha)
            if results.finished("distillation_grid", row | {"seed": seed}):
                continue
            accuracy = evaluate(_train_student(arguments, data, temperature, alpha, seed), data.validation)
            row |= {"correct": accuracy.correct, "total": accuracy.total}
            results.append("distillation_grid", row | results.provenance(seed))
            print(f"T {temperature:g}, alpha {alpha:g}: {accuracy} of the validation split")


def _student_row(arguments: argparse.Namespace, data: Data, temperature: float, alpha: float) -> dict:
    names = {"student": arguments.student, "teacher": "vgg19", "data": data.name, "train_pictures": len(data.train)}
    return names | {"epochs": arguments.epochs or 30, "temperature": temperature, "alpha": alpha}


def _train_student(arguments: argparse.Namespace, data: Data, temperature: float, alpha: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    student = models.build(arguments.student)
    loss = DistillationLoss(models.load(TEACHER), temperature, alpha) if alpha > 0 else None
    epochs = arguments.epochs or 30
    checkpoint = WORK / f"{arguments.student}-{len(data.train)}-{epochs}-T{temperature:g}-a{alpha:g}-{seed}.safetensors"
    watched = replace(data, validation=data.validation.take(slice(0, 1_000)))  # a glance per epoch; nothing is chosen by it
    batch_size = 128 if len(data.train) >= 20_000 else 64  # few pictures need small batches to make enough steps
    fit(student, watched, epochs=epochs, batch_size=batch_size, loss=loss, seed=seed, checkpoint=checkpoint)
    return student


def speed(arguments: argparse.Namespace) -> None:
    """Time fit against the loop of PyTorch's CIFAR-10 tutorial on VGG-19; append to data/results/speed.csv."""
    if torch.cuda.is_available():
        raise RuntimeError("speed compares the two loops on the CPU: hide the GPU with CUDA_VISIBLE_DEVICES=")
    batch_size, steps = 256, arguments.steps
    data = load_data("cifar10", train_limit=batch_size * steps)
    data = replace(data, validation=data.validation.take(slice(0, 500)))
    model = models.build("vgg19")
    fit(model, replace(data, train=data.train.take(slice(0, 2 * batch_size))), epochs=1, batch_size=batch_size, progress=False)
    ours = fit(model, data, epochs=1, batch_size=batch_size, progress=False)["images_per_second"][0]
    plain = _tutorial_loop(batch_size, steps)
    row = {"model": "vgg19", "batch_size": batch_size, "steps": steps, "fit_images_per_second": round(ours, 1)}
    row |= {"tutorial_images_per_second": round(plain, 1), "ratio": round(ours / plain, 2)}
    results.append("speed", row | results.provenance(0))
    print(f"fit {ours:.1f} images/s, tutorial loop {plain:.1f} images/s: {ours / plain:.2f} times")


def _tutorial_loop(batch_size: int, steps: int) -> float:
    """Images per second of the plain loop: DataLoader with transforms, two workers, fp32, SGD, as in pytorch.org's tutorial."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD)])
    loader = torch.utils.data.DataLoader(CIFAR10(cifar10_root(), transform=transform), batch_size, shuffle=True, num_workers=2)
    model = models.build("vgg19").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    started, warm_up = 0.0, 2
    for step, (inputs, labels) in enumerate(loader):
        if step == warm_up:
            started = time.perf_counter()
        if step == warm_up + steps:
            break
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return batch_size * steps / (time.perf_counter() - started)


COMMANDS = {"teacher": teacher, "distillation": distillation, "distillation_grid": distillation_grid, "speed": speed}


def main() -> None:
    """Parse the command line and run what it names."""
    parser = argparse.ArgumentParser(prog="python -m helpers.benchmark", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--epochs", type=int, help="default: 30, for the teacher on a GPU 200")
    parser.add_argument("--restart", action="store_true", help="teacher: train the one that is there for another cycle")
    parser.add_argument("--steps", type=int, default=12, choices=range(1, 150), metavar="1..149", help="timed by speed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-limit", type=int, help="training pictures for the students; default: all")
    parser.add_argument("--student", default="tiny_convnet", choices=models.MODELS)
    arguments = parser.parse_args()
    COMMANDS[arguments.what](arguments)
    results.write_readme()


if __name__ == "__main__":
    main()
