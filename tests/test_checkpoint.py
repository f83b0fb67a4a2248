import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import files, models
from helpers.checkpoint import Checkpoint
from helpers.data import load_data
from helpers.distillation import DistillationLoss
from helpers.files import CheckpointError
from helpers.pruning import GradualPruner, PolynomialSchedule
from helpers.quantization import QuantizationAware
from helpers.training import Callback, fit

SHORT = {"batch_size": 64, "progress": False}


def small():
    torch.manual_seed(0)
    return models.build("tiny_convnet", width=0.2)


@pytest.fixture(scope="module")
def few():
    return load_data("digits", train_limit=256)


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Stop(Callback):
    """Interrupts a run at a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run):
        if run.step == self.step:
            raise KeyboardInterrupt


def interrupted(step, path, data, **options):
    callbacks = [*options.pop("callbacks", []), Stop(step)]
    with pytest.raises(KeyboardInterrupt):
        fit(small(), data, checkpoint=path, callbacks=callbacks, **SHORT, **options)


@pytest.mark.parametrize(
    ("step", "options"),
    [(1, {}), (4, {}), (5, {}), (11, {}), (5, {"optimizer": "muon", "momentum": 0.6})],
)
def test_an_interrupted_run_ends_with_the_same_bits(few, tmp_path, step, options):
    whole, path = small(), tmp_path / "run.safetensors"
    expected = fit(whole, few, epochs=3, **SHORT, **options)
    interrupted(step, path, few, epochs=3, **options)
    resumed = models.build("tiny_convnet", width=0.2)  # other weights: those in the file count
    history = fit(resumed, few, epochs=3, checkpoint=path, **SHORT, **options)
    assert same(whole, resumed)
    assert history["loss"].tolist() == expected["loss"].tolist()


def test_with_loss_pruner_and_muon_together_it_ends_with_the_same_bits_too(few, tmp_path):
    teacher, path, runs = models.build("tiny_convnet", width=0.3), tmp_path / "run.safetensors", []
    options = {"epochs": 3, "optimizer": "muon", "momentum": 0.6, "loss": DistillationLoss(teacher)}
    pruner = lambda: GradualPruner(PolynomialSchedule(0.7), every=3)  # noqa: E731
    interrupted(7, path, few, callbacks=[pruner()], **options)
    for checkpoint in (None, path):
        runs.append(small())
        fit(runs[-1], few, callbacks=[pruner()], checkpoint=checkpoint, **SHORT, **options)
    assert same(*runs)


def test_the_callback_alone_does_what_the_argument_does(few, tmp_path):
    for path in (tmp_path / "argument.safetensors", tmp_path / "callback.safetensors"):
        options = {"checkpoint": path} if path.stem == "argument" else {"callbacks": [Checkpoint(path)]}
        fit(small(), few, epochs=1, **SHORT, **options)
    (metadata, tensors), (_, others) = (files.read_safetensors(path) for path in sorted(tmp_path.iterdir()))
    assert {name.split("/")[0] for name in tensors} == {"model", "optimizer"}
    assert all(torch.equal(tensors[name], others[name]) for name in {**tensors, **others})
    assert len(json.loads(metadata["record"])["history"]) == 1


def test_with_a_pause_only_the_first_file_after_it_and_the_last_are_written(few, tmp_path, monkeypatch):
    path, clock, written = tmp_path / "run.safetensors", iter(range(0, 1_000, 40)), []
    monkeypatch.setattr("helpers.checkpoint.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(
        "helpers.checkpoint.write_safetensors",
        lambda file, tensors, metadata: written.append(len(json.loads(metadata["record"])["history"])),
    )
    fit(small(), few, epochs=5, callbacks=[Checkpoint(path, pause=60)], **SHORT)
    # the clock, 40 s a look: start 0, epoch 1 at 40 (soon), 2 at 80 and written at 120, 3 at 160 (soon), 4 at 200
    assert written == [2, 4, 5]


def test_files_from_before_cutout_and_muon_go_on(few, tmp_path):
    whole, half, path = small(), small(), tmp_path / "run.safetensors"
    fit(whole, few, epochs=2, **SHORT)
    interrupted(6, path, few, epochs=2)
    metadata, tensors = files.read_safetensors(path)
    record = json.loads(metadata["record"])
    del record["settings"]["cutout"], record["settings"]["optimizer"]
    text = json.dumps(record)
    files.write_safetensors(path, tensors, {"record": text, "sha256": files.digest(tensors, text)})
    for options, said in (
        ({"cutout": 8}, r"cutout 0 \(now 8\)"),
        ({"optimizer": "muon"}, r"optimizer 'sgd' \(now 'muon'\)"),
    ):
        with pytest.raises(ValueError, match=f"belongs to a run with {said}"):
            fit(small(), few, epochs=2, checkpoint=path, **SHORT, **options)
    fit(half, few, epochs=2, checkpoint=path, **SHORT)
    assert same(half, whole)


def test_a_checkpoint_of_another_run_is_refused_and_kept(few, tmp_path):
    path, teacher = tmp_path / "run.safetensors", small()
    options = {"epochs": 1, "checkpoint": path, **SHORT}
    fit(small(), few, **options)
    content = path.read_bytes()
    taught = r"'DistillationLoss\(temperature=4\.0, alpha=0\.9, weights \w{10}\)'"
    labels = replace(few.train, labels=few.train.labels.flip(0))
    for change, said in (
        ({"lr": 0.2}, r"lr 0\.1 \(now 0\.2\)"),
        ({"loss": DistillationLoss(teacher)}, rf"loss '' \(now {taught}\)"),
        ({"callbacks": [GradualPruner(PolynomialSchedule(0.5))]}, r"callbacks \[\] \(now \['GradualPruner"),
        ({"data": load_data("digits", train_limit=256, seed=1)}, "data"),
        ({"data": replace(few, train=labels)}, "data"),
        ({"model": models.build("tiny_convnet", width=0.3)}, "model"),
    ):
        arguments = {"model": small(), "data": few, **options, **change}
        with pytest.raises(ValueError, match=rf"run\.safetensors belongs to a run with {said}.*Way out"):
            fit(**arguments)
    assert path.read_bytes() == content
    fit(
        small(), few, **options | {"progress": True, "compile": False}
    )  # what changes no weight does not count


def test_a_run_with_another_teacher_is_refused(few, tmp_path):
    teachers = [models.build("tiny_convnet", width=0.2) for _ in range(2)]
    options = {"epochs": 1, "checkpoint": tmp_path / "run.safetensors", **SHORT}
    for _ in range(2):  # the second goes on from the first
        fit(small(), few, loss=DistillationLoss(teachers[0]), **options)
    with pytest.raises(ValueError, match="belongs to a run with loss"):
        fit(small(), few, loss=DistillationLoss(teachers[1]), **options)


def test_a_damaged_file_and_one_of_something_else_are_named(few, tmp_path):
    path = tmp_path / "run.safetensors"
    options = {"epochs": 1, "checkpoint": path, **SHORT}
    fit(small(), few, **options)
    content = path.read_bytes()
    metadata, mapped = files.read_safetensors(path)
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    del mapped  # of a file that is written over below

    def forged(tensors):
        sha256 = files.digest(tensors, metadata["record"])
        files.write_safetensors(path, tensors, metadata | {"sha256": sha256})

    for harm, said in (
        (lambda: path.write_bytes(bytes([*content[:-5], content[-5] ^ 1, *content[-4:]])), "is altered"),
        (lambda: path.write_bytes(content[:500]), "is truncated"),
        (lambda: models.save(small(), path), "is not a checkpoint of fit"),
        (lambda: forged({"model/x": torch.zeros(1)}), "holds another run's tensors"),
        (
            lambda: forged({**tensors, "optimizer/99/momentum_buffer": torch.zeros(1)}),
            "another run's tensors",
        ),
    ):
        harm()
        with pytest.raises(CheckpointError, match=rf"(?s)run\.safetensors.*{said}.*Way out"):
            fit(small(), few, **options)


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

        def on_start(self, run):
            self.began = run.epoch, run.step, len(run.history), self.count.item()

    path, counter = tmp_path / "run.safetensors", Counter()
    interrupted(9, path, few, epochs=3, callbacks=[Counter()])
    fit(small(), few, epochs=3, checkpoint=path, callbacks=[counter, Stop(0)], **SHORT)
    assert counter.began == (2, 8, 2, 8)
    assert counter.count.item() == 12


def closed_over(smoothing):
    return lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=smoothing)


def by_default(smoothing):
    return lambda logits, labels, power=smoothing: F.cross_entropy(logits * power, labels)


def asked(loss, logits, labels):
    return loss(logits, labels)


class Sharper(nn.Module):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, logits, labels):
        return F.cross_entropy(logits * self.power, labels)


@pytest.mark.parametrize(
    "make",
    [
        lambda number: nn.CrossEntropyLoss(label_smoothing=number),
        lambda number: partial(F.cross_entropy, label_smoothing=number),
        closed_over,
        by_default,
        Sharper,
        lambda number: Sharper(number).forward,
        lambda number: partial(asked, nn.CrossEntropyLoss(label_smoothing=number)),
    ],
    ids=["module", "partial", "closure", "default", "attribute", "method", "module in a partial"],
)
def test_losses_that_print_alike_are_told_apart(make, few, tmp_path):
    options = {"epochs": 1, "checkpoint": tmp_path / "run.safetensors", **SHORT}
    for _ in range(2):  # the second goes on from the first
        fit(small(), few, loss=make(0.1), **options)
    with pytest.raises(ValueError, match=r"belongs to a run with loss .*0\.1.*now .*0\.3"):
        fit(small(), few, loss=make(0.3), **options)


def test_a_callback_without_settings_may_come_before_one_that_keeps_weights(few, tmp_path):
    path, whole, half = tmp_path / "run.safetensors", small(), small()
    fit(whole, few, epochs=3, callbacks=[QuantizationAware(3)], **SHORT)
    interrupted(6, path, few, epochs=3, callbacks=[QuantizationAware(3)])
    fit(half, few, epochs=3, checkpoint=path, callbacks=[Callback(), QuantizationAware(3)], **SHORT)
    assert same(half, whole)
