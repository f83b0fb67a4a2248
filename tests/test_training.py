import json
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

from helpers import evaluation, models
from helpers.data import load_data, normalize
from helpers.distillation import DistillationLoss
from helpers.models import CheckpointError
from helpers.training import Accuracy, Callback, evaluate, fit, learning_rate, predict


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
    fit(
        model,
        few,
        epochs=1,
        batch_size=256,
        lr=0.05,
        warmup=0,
        weight_decay=0.01,
        augment=False,
        precision="fp32",
        progress=False,
    )
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    reference.train().to(memory_format=torch.channels_last)
    F.cross_entropy(reference(normalize(few.train.images[order], few)), few.train.labels[order]).backward()
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        gradient = theirs.grad + (0.01 * theirs if theirs.ndim > 1 else 0)
        assert torch.allclose(mine, theirs - 0.05 * (gradient + 0.9 * gradient), atol=1e-6), name


def test_same_seed_same_bits_other_seed_other_weights(few):
    runs = []
    for seed in (3, 3, 4):
        model = small()
        fit(model, few, epochs=2, batch_size=64, seed=seed, progress=False)
        runs.append(model)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_cutout_hides_and_checkpoints_from_before_it_go_on(few, tmp_path):
    runs = {}
    for cutout in (0, 8):
        runs[cutout] = small()
        fit(runs[cutout], few, epochs=2, batch_size=64, cutout=cutout, progress=False)
    assert not same(runs[0], runs[8])
    half, path = small(), tmp_path / "run.safetensors"

    class Stop(Callback):
        def on_step(self, run):
            if run.epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(half, few, epochs=2, batch_size=64, callbacks=[Stop()], checkpoint=path, progress=False)
    metadata, tensors = models.read_safetensors(path)
    record = json.loads(metadata["record"])
    del record["settings"]["cutout"]
    text = json.dumps(record)
    models.write_safetensors(
        path, tensors, metadata | {"record": text, "sha256": models.digest(tensors, text)}
    )
    fit(half, few, epochs=2, batch_size=64, checkpoint=path, progress=False)
    assert same(half, runs[0])
    with pytest.raises(ValueError, match=r"cutout 0 \(now 8\)"):
        fit(small(), few, epochs=2, batch_size=64, cutout=8, checkpoint=path, progress=False)


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
            return {"steps": float(run.step)}

    recorder = Recorder()
    history = fit(small(), few, epochs=2, batch_size=64, callbacks=[recorder], progress=False)
    assert recorder.seen == ["start", *[x for i in range(1, 9) for x in ("gradients", i / 8)]]
    assert list(history["steps"]) == [4, 8]


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
        ({"seed": -1}, "seed"), ({"precision": "fp8"}, "precision"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(few, arguments, name):
    with pytest.raises((ValueError, TypeError), match=f"^{name} must be"):
        fit(small(), few, **{"epochs": 1, "progress": False, **arguments})


def test_wrong_model_and_data_are_named(few):
    with pytest.raises(TypeError, match="model must be Module"):
        fit("vgg19", few, epochs=1)
    with pytest.raises(TypeError, match="data must be Data"):
        fit(small(), few.train, epochs=1)


# -- accuracy --------------------------------------------------------------------------------------------------------


def test_accuracy_prints_percent_count_and_interval():
    accuracy = Accuracy(9421, 10_000)
    assert str(accuracy) == "94.2% (9,421 of 10,000; 93.7 to 94.7)"
    assert float(accuracy) == 0.9421


def test_wilson_interval_against_values_worked_by_hand():
    # z^2 = 3.8415; for 8 of 10: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half-width 0.22659.
    assert Accuracy(8, 10).interval == pytest.approx((0.49015, 0.94333), abs=1e-4)
    assert Accuracy(0, 5).interval[0] == 0
    assert Accuracy(5, 5).interval[1] == 1
    with pytest.raises(ValueError, match="correct must be an integer from 0 to 5"):
        Accuracy(6, 5)


def test_evaluate_counts_what_a_plain_loop_counts(digits):
    model = small()
    fit(model, digits, epochs=1, batch_size=64, progress=False)
    with torch.no_grad():
        plain = model(normalize(digits.test.images, digits)).argmax(1)
    model.train()
    assert evaluate(model, digits.test, batch_size=7, precision="fp32").correct == int(
        (plain == digits.test.labels).sum()
    )
    assert model.training
    assert predict(model, digits.test).shape == (300, 10)


# -- checkpoints -----------------------------------------------------------------------------------------------------


class Stop(Callback):
    """Interrupts a run at a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run):
        if run.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [1, 4, 5, 11])
def test_an_interrupted_run_ends_with_the_same_bits(few, tmp_path, step):
    whole = small()
    expected = fit(whole, few, epochs=3, batch_size=64, progress=False)
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(small(), few, epochs=3, batch_size=64, checkpoint=path, callbacks=[Stop(step)], progress=False)
    resumed = models.build("tiny_convnet", width=0.2)
    history = fit(resumed, few, epochs=3, batch_size=64, checkpoint=path, progress=False)
    assert same(whole, resumed)
    assert history["loss"].tolist() == expected["loss"].tolist()


def test_a_checkpoint_of_a_run_with_another_teacher_is_refused(few, tmp_path):
    path, teacher, other = (
        tmp_path / "run.safetensors",
        models.build("tiny_convnet", width=0.2),
        models.build("tiny_convnet", width=0.2),
    )
    for _ in range(2):  # the second goes on from the first
        fit(
            small(),
            few,
            epochs=1,
            batch_size=64,
            loss=DistillationLoss(teacher),
            checkpoint=path,
            progress=False,
        )
    with pytest.raises(ValueError, match="belongs to a run with loss"):
        fit(
            small(),
            few,
            epochs=1,
            batch_size=64,
            loss=DistillationLoss(other),
            checkpoint=path,
            progress=False,
        )


def test_a_checkpoint_of_another_run_is_refused_and_kept(few, tmp_path):
    path = tmp_path / "run.safetensors"
    fit(small(), few, epochs=1, batch_size=64, checkpoint=path, progress=False)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"belongs to a run with lr 0\.1 \(now 0\.2\)"):
        fit(small(), few, epochs=1, batch_size=64, lr=0.2, checkpoint=path, progress=False)
    assert path.read_bytes() == content
    with pytest.raises(
        ValueError,
        match=r"belongs to a run with loss '' \(now 'DistillationLoss\(temperature=4, alpha=0\.9, weights \w{10}\)'\)",
    ):
        fit(
            small(),
            few,
            epochs=1,
            batch_size=64,
            loss=DistillationLoss(small()),
            checkpoint=path,
            progress=False,
        )
    other = load_data("digits", train_limit=256, seed=1)
    with pytest.raises(ValueError, match="belongs to a run with data"):
        fit(small(), other, epochs=1, batch_size=64, checkpoint=path, progress=False)
    path.write_bytes(bytes([*content[:-5], content[-5] ^ 1, *content[-4:]]))
    with pytest.raises(CheckpointError, match=r"run\.safetensors is altered"):
        fit(small(), few, epochs=1, batch_size=64, checkpoint=path, progress=False)
    path.write_bytes(content[:500])
    with pytest.raises(CheckpointError, match=r"run\.safetensors is truncated"):
        fit(small(), few, epochs=1, batch_size=64, checkpoint=path, progress=False)


def test_callback_state_travels_in_the_checkpoint(few, tmp_path):
    class Counter(Callback):
        def __init__(self):
            self.count = torch.zeros(1)

        def on_step(self, run):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(
            small(),
            few,
            epochs=3,
            batch_size=64,
            checkpoint=path,
            callbacks=[Counter(), Stop(9)],
            progress=False,
        )
    counter = Counter()
    fit(small(), few, epochs=3, batch_size=64, checkpoint=path, callbacks=[counter, Stop(0)], progress=False)
    assert counter.count.item() == 12


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


def test_bf16_is_found_where_the_processor_has_it():
    assert isinstance(evaluation.has_bf16(), bool)
    for precision, enabled in (("fp32", False), ("bf16", True), ("auto", evaluation.has_bf16())):
        with evaluation.autocast(torch.device("cpu"), precision):
            assert torch.is_autocast_enabled("cpu") is enabled


def test_a_model_that_cannot_take_the_pictures_says_so(few):
    with pytest.raises(RuntimeError):
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
