import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import models
from helpers.data import load_data, normalize
from helpers.training import Callback, evaluate, fit, learning_rate


def small():
    torch.manual_seed(0)
    return models.build("tiny_convnet", width=0.2)


@pytest.fixture(scope="module")
def few():
    return load_data("digits", train_limit=256)


def same(first, second):
    return all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_it_learns_digits(digits):
    model = small()
    history = fit(model, digits, epochs=4, batch_size=64, progress=False)
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] / 2
    assert float(evaluate(model, digits.test)) > 0.85
    assert not model.training


def test_one_step_is_the_textbooks_nesterov_step(few):
    """One fp32 batch without augmentation against the update written out (Sutskever 2013, in PyTorch's form)."""
    model, reference = small(), small()
    options = {"augment": False, "precision": "fp32", "progress": False, "warmup": 0}
    history = fit(model, few, epochs=1, batch_size=256, lr=0.05, weight_decay=0.01, **options)
    assert history["lr"][0] == pytest.approx(
        0.025
    )  # one step is asked for in its middle: half a cosine there
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    reference.train().to(memory_format=torch.channels_last)
    F.cross_entropy(reference(normalize(few.train.images[order], few)), few.train.labels[order]).backward()
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        gradient = theirs.grad + (0.01 * theirs if theirs.ndim > 1 else 0)
        assert torch.allclose(mine, theirs - 0.025 * (gradient + 0.9 * gradient), atol=1e-6), name


def test_same_seed_same_bits_other_seed_other_weights(few):
    runs = []
    for seed in (3, 3, 4):
        model = small()
        fit(model, few, epochs=2, batch_size=64, seed=seed, progress=False)
        runs.append(model)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_label_smoothing_and_a_loss_of_ones_own(few):
    by_option, by_loss = small(), small()
    fit(by_option, few, epochs=1, batch_size=64, label_smoothing=0.1, progress=False)
    fit(
        by_loss,
        few,
        epochs=1,
        batch_size=64,
        loss=lambda z, x, y: F.cross_entropy(z, y, label_smoothing=0.1),
        progress=False,
    )
    assert same(by_option, by_loss)


def test_callbacks_see_every_step_and_add_columns(few):
    class Recorder(Callback):
        def __init__(self):
            self.seen = []

        def on_start(self, run):
            self.seen.append("start")

        def on_gradients(self, run):
            assert all(p.grad is not None for p in run.model.parameters())
            self.seen.append("gradients")

        def on_step(self, run):
            self.seen.append(run.progress)

        def on_epoch(self, run):
            self.seen.append(run.epoch)
            return {"steps": float(run.step)}

        def on_row(self, run):
            assert run.history[-1]["epoch"] == run.epoch
            self.seen.append(run.history[-1]["steps"])

    recorder = Recorder()
    history = fit(small(), few, epochs=2, batch_size=64, callbacks=[recorder], progress=False)
    steps = [[x for i in some for x in ("gradients", i / 8)] for some in (range(1, 5), range(5, 9))]
    assert recorder.seen == ["start", *steps[0], 1, 4.0, *steps[1], 2, 8.0]
    assert list(history["steps"]) == [4, 8]


def test_no_step_is_taken_with_a_rate_of_zero(few):
    rates = []

    class Watch(Callback):
        def on_step(self, run):
            assert len({group["lr"] for group in run.optimizer.param_groups}) == 1
            rates.append(run.optimizer.param_groups[0]["lr"])

    options = {"schedule": "one_cycle", "warmup": 0.5, "callbacks": [Watch()], "progress": False}
    fit(small(), few, epochs=2, batch_size=64, lr=0.8, **options)
    assert rates == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.7, 0.5, 0.3, 0.1])


def test_not_finite_loss_says_at_which_step(few):
    calls = iter(range(100))
    with pytest.raises(FloatingPointError, match=r"nan at step 3 of 8 \(epoch 1\).*lower lr"):
        fit(
            small(),
            few,
            epochs=2,
            batch_size=64,
            loss=lambda z, x, y: z.sum() * (math.nan if next(calls) == 2 else 1),
            progress=False,
        )


def test_a_loss_that_is_only_looked_at_once_an_epoch_is_found_before_its_checkpoint(few, tmp_path):
    """As on a GPU: each step's loss is finite, so it is the sum that gives it away."""
    path, options = tmp_path / "run.safetensors", {"epochs": 2, "batch_size": 64, "progress": False}
    with pytest.raises(
        FloatingPointError, match=r"inf at steps 1 to 4 of 8 \(epoch 1\): lower lr \(it is 0\.1\)"
    ):
        fit(small(), few, loss=lambda z, x, y: z.sum() * 0 + 2e38, checkpoint=path, **options)
    assert not path.exists()


def test_learning_rate_climbs_then_falls():
    for schedule in ("cosine", "one_cycle"):
        values = [learning_rate(p / 100, 0.4, schedule, warmup=0.2) for p in range(101)]
        assert values[0] == 0
        assert values[20] == pytest.approx(0.4)
        assert values[10] == pytest.approx(0.2)
        assert values[60] == pytest.approx(0.2)  # halfway down, for the line and for the cosine
        assert values[100] == pytest.approx(0, abs=1e-12)
        assert values == sorted(values[:21]) + sorted(values[21:], reverse=True)
    assert learning_rate(-1, 0.4) == learning_rate(0, 0.4)
    assert learning_rate(2, 0.4) == learning_rate(1, 0.4)
    assert learning_rate(0, 0.4, warmup=0) == 0.4


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"epochs": 0}, "epochs"), ({"epochs": 1.5}, "epochs"), ({"lr": 0}, "lr"), ({"lr": math.nan}, "lr"), ({"lr": math.inf}, "lr"),
        ({"batch_size": 0}, "batch_size"), ({"momentum": 1}, "momentum"), ({"weight_decay": -1}, "weight_decay"),
        ({"label_smoothing": 1}, "label_smoothing"), ({"schedule": "linear"}, "schedule"), ({"warmup": 1}, "warmup"),
        ({"seed": -1}, "seed"), ({"precision": "fp8"}, "precision"), ({"cutout": 33}, "cutout"), ({"optimizer": "adam"}, "optimizer"),
        ({"callbacks": [1]}, "callbacks"), ({"loss": "mse"}, "loss"), ({"checkpoint": "run.pt"}, "checkpoint"),
        ({"loss": F.mse_loss, "label_smoothing": 0.1}, "label_smoothing"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(few, arguments, name):
    with pytest.raises((ValueError, TypeError), match=f"^{name} must"):
        fit(small(), few, **{"epochs": 1, "progress": False, **arguments})


def test_a_frozen_model_is_refused(few):
    with pytest.raises(ValueError, match="model must have a parameter to train"):
        fit(small().requires_grad_(False), few, epochs=1, progress=False)


def test_cutout_hides(few):
    runs = [small(), small()]
    for cutout, model in zip((0, 8), runs, strict=True):
        fit(model, few, epochs=1, batch_size=64, cutout=cutout, progress=False)
    assert not same(*runs)


def test_wrong_model_and_data_are_named(few):
    with pytest.raises(TypeError, match="model must be an instance of Module"):
        fit("vgg19", few, epochs=1)
    with pytest.raises(TypeError, match="data must be an instance of Data"):
        fit(small(), few.train, epochs=1)


TWO_PROCESSES = """
    import os, sys, torch
    from pathlib import Path
    from torch import nn
    from helpers.data import load_data
    from helpers.training import fit
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8) if len(sys.argv) > 2 else nn.Identity()
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), norm, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    history = fit(model, load_data("digits", train_limit=256), epochs=2, batch_size=64, lr=0.05, precision="fp32", progress=False)
    sums = [t.double().sum().item() for t in model.state_dict().values()]
    numbers = [history["loss"].iloc[-1], history["train_accuracy"].iloc[-1], *sums]
    Path(sys.argv[1], os.environ.get("RANK", "0")).write_text(" ".join(map(str, numbers)))
"""


def launch(script, processes, *arguments):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        sys.executable,
        *(torchrun if processes > 1 else []),
        str(script),
        str(script.parent),
        *arguments,
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [
        [float(number) for number in (script.parent / str(rank)).read_text().split()]
        for rank in range(processes)
    ]


def test_two_processes_train_what_one_does(tmp_path):
    """Two processes on the CPU: the same gradients, so the same weights up to rounding."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    (alone,), (first, second) = launch(script, 1), launch(script, 2)
    assert first == second
    assert first == pytest.approx(alone, rel=1e-3, abs=1e-4)
    first, second = launch(script, 2, "batchnorm")
    assert first == second


def test_a_model_that_cannot_take_the_pictures_says_so(few):
    with pytest.raises(ValueError, match="model must take pictures of 3 x 32 x 32"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), few, epochs=1, progress=False)


def test_pictures_may_lie_in_memory_in_any_order(few):
    """A view with its channels last in memory, as arrays of pictures come from elsewhere, trains to the same bits."""
    turned = replace(few.train, images=few.train.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
    assert not turned.images.is_contiguous()
    networks = []
    for train in (few.train, turned):
        networks.append(small())
        fit(networks[-1], replace(few, train=train), epochs=1, batch_size=64, progress=False)
    assert same(*networks)
