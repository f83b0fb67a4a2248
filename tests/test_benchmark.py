"""The commands that make the published rows, on digits and a narrow VGG-19: what they write, and that nothing is run twice."""

import argparse
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch

from helpers import benchmark, models, pruning, results
from helpers.data import HOME, load_data
from helpers.training import fit


@pytest.fixture
def small(tmp_path, monkeypatch):
    data = load_data("digits", train_limit=256)
    torch.manual_seed(0)
    model = models.build("vgg19", width=0.25)
    fit(model, data, epochs=2, batch_size=64, progress=False)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(benchmark, "WORK", tmp_path / "work")
    monkeypatch.setattr(benchmark, "TEACHER", tmp_path / "vgg19.safetensors")
    monkeypatch.setattr(benchmark, "load_data", lambda *_, **__: data)
    models.save(model, benchmark.TEACHER, torch.float16)
    return argparse.Namespace(
        seeds=[0], epochs=1, end=0.5, budget=None, data="digits", model="vgg19", train_limit=None, lr=0.02, sparsity=0.5, distil=False,
        only=["dense-0", "gradual-0.9"], tolerances=[0.02],
        budgets=[5.0], macs=[2.0], start=None, point="combined", pixels=None, cutout=0, compile=False, arms=["alone", "taught"],
    )  # fmt: skip


def test_compression_rows_say_what_was_kept_beside_the_teacher_and_are_not_run_twice(small, monkeypatch):
    results.append("sensitivity", {"unit": "channel", "weights": "of another", "correct": 1, "total": 1})
    with pytest.raises(RuntimeError, match="no scan of this teacher"):
        benchmark.channels(small)
    (results.RESULTS / "sensitivity.csv").unlink()
    for command in (
        benchmark.sensitivity,
        benchmark.prune,
        benchmark.channels,
        benchmark.low_rank_curve,
        benchmark.low_rank,
    ):
        command(small)
    pruned = results.read("pruning").set_index("method")
    (measured,) = benchmark.WORK.glob("vgg19_pruned90-0-*.safetensors")
    kept = models.load(measured)
    weights = [parameter for parameter in kept.parameters() if parameter.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert zeros == pytest.approx(0.9, abs=0.002)  # half precision may round a tiny weight to zero
    assert pruned.loc["gradual", "half_bytes"] == measured.stat().st_size
    assert [path.name for path in benchmark.TEACHER.parent.glob("*.safetensors")] == [
        "vgg19.safetensors"
    ]  # only full runs are kept
    assert pruned.loc["gradual", "storage"] == "bitmask+zip"
    assert pruned.loc["dense", "storage"] == "dense"
    assert (pruned["teacher_correct"] == pruned["teacher_correct"].iloc[0]).all()
    thin = results.read("channels").iloc[0]
    assert thin["parameters"] < pruned.loc["dense", "parameters"]
    low = results.read("low_rank")
    assert len(low[low["epochs"] == 0]) == 40
    assert (
        low[low["method"] == "weights"]["macs"].tolist()
        == low[low["method"] == "pictures, ranks of weights"]["macs"].tolist()
    )
    trained = low[low["epochs"] == 1].iloc[0]
    assert trained["parameters"] < 0.25 * pruned.loc["dense", "parameters"]
    assert trained["macs"] < 0.52 * pruned.loc["dense", "macs"]
    assert set(results.read("sensitivity")["unit"]) == {"weight", "channel"}
    before = {path.name: path.read_text() for path in results.RESULTS.glob("*.csv")}
    monkeypatch.setattr(benchmark, "fit", None)
    for command in (
        benchmark.sensitivity,
        benchmark.prune,
        benchmark.channels,
        benchmark.low_rank_curve,
        benchmark.low_rank,
    ):
        command(small)
    assert before == {path.name: path.read_text() for path in results.RESULTS.glob("*.csv")}


def test_the_combined_row_is_measured_in_onnxruntime(small, monkeypatch):
    monkeypatch.setattr(benchmark.export, "AGREEMENT", 0.0)  # a network trained for seconds rounds badly
    benchmark.sensitivity(small)
    benchmark.combined(argparse.Namespace(**{**vars(small), "tolerances": [0.1]}))
    row = results.read("combined").iloc[0]
    assert row["int8_zip_bytes"] < row["int8_onnx_bytes"] < row["onnx_bytes"] < row["teacher_onnx_bytes"]
    assert 0.4 < row["nonzeros"] / row["parameters"] < 0.6
    assert 0 <= row["int8_correct"] <= row["total"] == 300
    assert [path.name for path in benchmark.WORK.glob("deployed*")] == [
        "deployed"
    ]  # the teacher's; the network's own folder is gone
    assert (
        row["int8_latency_low_ms_1_threads"]
        <= row["int8_latency_ms_1_threads"]
        <= row["int8_latency_high_ms_1_threads"]
    )


def test_a_network_of_any_size_of_picture_starts_on_smaller_ones(small, tmp_path, monkeypatch):
    seen, options = [], []

    def fit(model, data, **recipe):
        seen.append(
            (
                tuple(data.train.images.shape[1:]),
                tuple(data.test.images.shape[1:]),
                len(data.train),
                recipe["lr"],
            )
        )
        options.append((recipe["cutout"], recipe["compile"]))
        return pd.DataFrame({"epoch": [1]})

    monkeypatch.setattr(benchmark, "fit", fit)
    monkeypatch.setattr(benchmark, "_least_sure", None)  # not asked where the number of pictures is given
    with pytest.raises(ValueError, match="vgg19 halves its pictures five times, got 16"):
        benchmark.teacher(argparse.Namespace(**{**vars(small), "pixels": 16, "restart": False}))
    monkeypatch.setattr(benchmark, "TEACHER", tmp_path / "resnet18.safetensors")
    asked = {**vars(small), "model": "resnet18"}
    benchmark.teacher(argparse.Namespace(**{**asked, "pixels": 16, "restart": False}))
    benchmark.teacher(
        argparse.Namespace(**{**asked, "train_limit": 256, "restart": True, "cutout": 8, "compile": True})
    )
    assert options == [(0, False), (8, True)]
    assert seen == [((3, 16, 16), (3, 16, 16), 256, 0.1), ((3, 32, 32), (3, 32, 32), 256, 0.05)]
    rows = results.read("teacher")
    assert (rows["pixels"].iloc[0], rows["cycle"].tolist()) == (16, [1, 2])
    assert rows["pixels"].isna().tolist() == [False, True]
    assert rows["cutout"].fillna(0).tolist() == [0, 8]
    images = load_data("digits").test.images[:5]
    smaller = benchmark._resized(load_data("digits").test.take(slice(0, 5)), 16).images
    means = images.float().reshape(5, 3, 16, 2, 16, 2).mean((3, 5))
    assert (smaller.float() - means).abs().max() <= 0.5


def test_the_grid_has_a_student_alone_beside_those_that_are_taught(small, monkeypatch):
    losses = []
    monkeypatch.setattr(benchmark, "fit", lambda model, data, *, loss, **recipe: losses.append(loss))
    benchmark.distillation_grid(argparse.Namespace(**{**vars(small), "student": "micro_convnet"}))
    rows = results.read("distillation_grid")
    assert list(zip(rows["temperature"], rows["alpha"], strict=True)) == [
        (1, 0), *((temperature, alpha) for temperature in (1, 4, 16) for alpha in (0.1, 0.5, 0.9)),
    ]  # fmt: skip
    assert losses[0] is None
    assert [(loss.temperature, loss.alpha) for loss in losses[1:]] == list(
        zip(rows["temperature"][1:], rows["alpha"][1:], strict=True)
    )
    assert rows["total"].unique() == [len(load_data("digits").validation)]
    benchmark.distillation_grid(argparse.Namespace(**{**vars(small), "student": "micro_convnet"}))
    assert len(losses) == 10  # nothing is run twice


def test_a_copy_of_the_teacher_can_teach_in_pairs(small):
    models.save(
        models.load(benchmark.TEACHER), benchmark.TEACHER.with_name("copy.safetensors"), torch.float16
    )
    asked = argparse.Namespace(**{**vars(small), "student": "tiny_convnet"})
    for start in (None, "copy"):
        benchmark.distillation(argparse.Namespace(**{**vars(asked), "start": start}))
    rows = results.read("distillation")
    assert list(zip(rows["teacher"], rows["arm"], strict=True)) == [
        ("vgg19", "alone"), ("vgg19", "taught"), ("copy", "alone"), ("copy", "taught"),
    ]  # fmt: skip
    taught, alone = (rows[rows["arm"] == arm]["correct"] for arm in ("taught", "alone"))
    assert taught.nunique() == 1  # the same teacher by another name
    assert alone.nunique() == 1


def test_smoothed_labels_are_an_arm_of_their_own(small, monkeypatch):
    seen = []
    monkeypatch.setattr(benchmark, "fit", lambda model, data, **recipe: seen.append(recipe))
    benchmark.distillation(
        argparse.Namespace(**{**vars(small), "student": "micro_convnet", "arms": list(benchmark.TRIAL)})
    )
    assert [(recipe["loss"] is None, recipe["label_smoothing"]) for recipe in seen] == [
        (True, 0),
        (True, 0.1),
        (False, 0),
    ]
    assert len({recipe["checkpoint"] for recipe in seen}) == 3
    rows = results.read("distillation")
    assert rows["arm"].tolist() == ["alone", "smoothed", "taught"]
    assert rows["label_smoothing"].fillna(0).tolist() == [0, 0.1, 0]
    assert rows["weights"].nunique() == 1


def test_students_learn_from_the_teacher_a_copy_of_it_or_nobody(small, monkeypatch):
    monkeypatch.setattr(benchmark, "deployed", lambda model, data: benchmark._counts(model, data.test))
    asked = argparse.Namespace(
        **{**vars(small), "student": "tiny_convnet", "start": None, "alone": False, "restart": False}
    )
    models.save(
        models.load(benchmark.TEACHER), benchmark.TEACHER.with_name("copy.safetensors"), torch.float16
    )
    for changed in ({}, {"start": "copy"}, {"alone": True}):
        benchmark.students(argparse.Namespace(**{**vars(asked), **changed}))
    rows = results.read("students")
    assert list(rows["taught_by"]) == ["vgg19", "copy", "nobody"]
    assert rows["parameters"].nunique() == 1
    assert rows["correct"].iloc[0] == rows["correct"].iloc[1]  # the same teacher by another name
    again = argparse.Namespace(**{**vars(asked), "restart": True})
    benchmark.students(again)
    row = results.read("students").iloc[-1]
    assert row["before"] == benchmark._digest(benchmark.WORK / "tiny_convnet-vgg19-256-0.safetensors")
    assert row["lr"] < rows["lr"].iloc[0]
    monkeypatch.setattr(benchmark, "fit", None)
    for finished in (asked, again):  # a finished row is not run again
        benchmark.students(finished)
    assert len(results.read("students")) == 4


def test_orders_and_peers_start_alike_and_are_measured_alike(small, monkeypatch):
    def counted(model, data):  # what is exported and timed is tested with the combined row
        return benchmark._counts(model, data.test) | {
            "nonzeros": sum(int(p.count_nonzero()) for p in model.parameters())
        }

    monkeypatch.setattr(benchmark, "deployed", counted)
    monkeypatch.setattr(benchmark, "_channel_scan", lambda: None)
    layers = [name for name in pruning.prunable(models.load(benchmark.TEACHER)) if name != "classifier"]
    monkeypatch.setattr(benchmark.pruning, "ratios_by_sensitivity", lambda *_: dict.fromkeys(layers, 0.6))
    benchmark.orders(small)
    ordered = results.read("orders").set_index("order")
    alive = ordered["nonzeros"] / ordered["parameters"]
    assert alive["factorize, prune, quantize"] == pytest.approx(0.4, abs=0.05)
    assert alive["prune, factorize, quantize"] > 0.9  # the product of thin matrices has no zeros
    assert ordered["on_grid"]["quantize, factorize, prune"] < 0.2  # nothing of the rounding is left
    benchmark.compare_peers(small)
    compared = results.read("peers").set_index(["task", "tool"])
    assert len(compared) == 6
    zeros = compared.loc["90% zeros"]
    assert (zeros["nonzeros"] / zeros["parameters"]).between(0.09, 0.13).all()
    assert (
        zeros["nonzeros"].max() - zeros["nonzeros"].min() < 20
    )  # biases that happen to be zero, of 130,000 numbers
    thin = compared.loc["fewer channels"]
    assert thin.loc["torch-pruning", "macs"] <= thin.loc["helpers.pruning", "macs"] < zeros["macs"].iloc[0]
    assert (
        compared.loc["low rank"]["parameters"] <= 0.252 * zeros["parameters"].iloc[0]
    ).all()  # the budget is of weights alone
    monkeypatch.setattr(benchmark.peers, "fit", None)
    benchmark.orders(small)
    benchmark.compare_peers(small)  # nothing is run twice


def test_weights_are_on_the_grid_they_were_rounded_to():
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.25)
    assert benchmark.peers.on_grid(model) < 0.05
    assert benchmark.peers.on_grid(benchmark.peers.quantization.round_weights(model, 8)) == 1


def test_a_second_process_trains_along_and_leaves_the_measuring_to_the_first(small, monkeypatch):
    """fit waits for every process: one that skips it would wait for ever."""
    trained = []
    monkeypatch.setattr(benchmark, "_writes", lambda: False)
    monkeypatch.setattr(benchmark, "deployed", None)
    monkeypatch.setattr(benchmark, "_channel_scan", lambda: None)
    monkeypatch.setattr(benchmark.pruning, "ratios_by_sensitivity", lambda *_: {})
    monkeypatch.setattr(benchmark.peers, "in_order", lambda order, model, *_: trained.append(order) or model)
    monkeypatch.setattr(benchmark.peers, "train", lambda *_: trained.append("peer"))
    monkeypatch.setattr(
        benchmark.peers,
        "TASKS",
        {"task": {"a": lambda model, *_: (model, ()), "b": lambda model, *_: (model, ())}},
    )
    benchmark.orders(small)
    benchmark.compare_peers(small)
    assert trained == [*benchmark.peers.ORDERS, "peer", "peer"]
    assert not results.RESULTS.exists()


def test_every_command_has_its_place_on_ray():
    assert sorted(name for wave in benchmark.WAVES for name in wave) == sorted(benchmark.COMMANDS)


def test_jobs_are_single_runs():
    def jobs(*words):
        arguments = benchmark.parser().parse_args(words)
        arguments.macs = arguments.macs or arguments.budgets
        return benchmark.jobs(arguments)

    asked = jobs("pruning", "--only", "dense-0", "gradual-0.9", "--seeds", "0", "1")
    assert [(job.what, job.only, job.seeds) for job in asked] == [
        ("pruning", ["dense-0"], [0]), ("pruning", ["dense-0"], [1]), ("pruning", ["gradual-0.9"], [0]), ("pruning", ["gradual-0.9"], [1]),
    ]  # fmt: skip
    assert [(job.budgets, job.macs) for job in jobs("low_rank", "--budgets", "4", "6", "--seeds", "0")] == [
        ([4], [4]),
        ([6], [6]),
    ]
    assert [
        (job.budgets, job.macs) for job in jobs("low_rank", "--budgets", "6", "--macs", "3", "--seeds", "0")
    ] == [([6], [3])]
    everything = [job.what for job in jobs("--seeds", "0")]
    assert list(dict.fromkeys(everything)) == benchmark.ALL
    assert everything[0] == "teacher"
    assert benchmark._epochs(jobs("channels", "--budget", "full")[0], "channels") == 100
    assert benchmark._epochs(jobs("channels", "--budget", "full", "--epochs", "7")[0], "channels") == 7


LAUNCHER = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "-m", "helpers.benchmark")  # fmt: skip


def command(folder, *words, launcher=()):
    python = (
        [sys.executable, "-m", *launcher, "helpers.benchmark"]
        if not launcher
        else [sys.executable, "-m", *launcher]
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "ACCELERATE_USE_CPU": "true",
    }
    options = ["--data", "digits", "--out", str(folder), "--seeds", "0", "--device", "cpu"]
    done = subprocess.run(
        [*python, *words, *options], cwd=HOME, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a teacher of digits, made by the command line itself in two processes."""
    folder = tmp_path_factory.mktemp("benchmark")
    command(folder, "teacher", "--epochs", "1", launcher=LAUNCHER)
    return folder


def test_two_processes_write_one_row(trained, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", trained / "results")
    rows = results.read("teacher")
    assert len(rows) == 1
    assert rows.iloc[0]["command"].startswith("python -m helpers.benchmark teacher --epochs 1 --data digits")
    assert (trained / "checkpoints" / "vgg19.safetensors").exists()


def test_two_processes_run_two_jobs(trained, tmp_path, monkeypatch):
    """The first thing that asks which process this is must not make it one of one."""
    shutil.copytree(trained, tmp_path / "two")
    words = ("pruning", "--only", "dense-0", "gradual-0.9", "--epochs", "1", "--train-limit", "300")
    command(tmp_path / "two", *words, launcher=LAUNCHER)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "two" / "results")
    assert results.read("pruning")["method"].tolist() == ["dense", "gradual"]


def test_ray_writes_the_rows_of_the_plain_engine(trained, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    rows = {}
    for engine in ("here", "ray"):
        folder = tmp_path / engine
        shutil.copytree(trained, folder)
        command(
            folder,
            "pruning",
            "--only",
            "dense-0",
            "gradual-0.9",
            "--epochs",
            "1",
            "--train-limit",
            "300",
            "--engine",
            engine,
        )
        monkeypatch.setattr(results, "RESULTS", folder / "results")
        rows[engine] = results.read("pruning").set_index("method").sort_index()
    same = [
        "sparsity",
        "train_pictures",
        "epochs",
        "weights",
        "total",
        "parameters",
        "nonzeros",
        "macs",
        "threads",
        "seed",
    ]
    assert rows["here"].index.tolist() == rows["ray"].index.tolist() == ["dense", "gradual"]
    assert rows["here"][same].equals(rows["ray"][same])


def test_a_second_cycle_trains_on_what_the_teacher_is_least_sure_of(small, monkeypatch):
    data = benchmark.load_data()
    model = models.load(benchmark.TEACHER)
    chosen = benchmark._least_sure(model, data, 0, hard=100, others=30)
    assert len(chosen) == 130
    sure = benchmark.predict(model, data.train, precision="auto").softmax(1).amax(1)
    images = {image.numpy().tobytes() for image in chosen.images}
    hardest = data.train.images[sure.argsort(stable=True)[:100]]
    assert all(image.numpy().tobytes() in images for image in hardest)
    results.append("teacher", {"model": "vgg19", "cycle": 1})
    benchmark.TEACHER.with_name("vgg19_history.csv").write_text("cycle,epoch\n1,1\n")
    monkeypatch.setattr(benchmark, "_least_sure", lambda *_: chosen)
    before = models.load(benchmark.TEACHER)
    benchmark.teacher(argparse.Namespace(**{**vars(small), "restart": True, "epochs": 2}))
    row = results.read("teacher").iloc[-1]
    assert (row["cycle"], row["train_pictures"], row["total"]) == (2, 130, len(data.test))
    assert not torch.equal(before.classifier.weight, models.load(benchmark.TEACHER).classifier.weight)
    assert (benchmark.TEACHER.with_name("vgg19_history.csv").read_text()).count("\n") == 4


def test_a_cycle_that_was_killed_while_it_was_written_down_is_written_down_once(small, monkeypatch):
    results.append("teacher", {"model": "vgg19", "cycle": 1})
    history = benchmark.TEACHER.with_name("vgg19_history.csv")
    history.write_text("cycle,epoch\n1,1\n")
    again, append = argparse.Namespace(**{**vars(small), "restart": True}), results.append
    monkeypatch.setattr(benchmark, "_least_sure", lambda model, data, seed: data.train.take(slice(0, 128)))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        benchmark.teacher(again)
    replaced = benchmark._digest()
    monkeypatch.setattr(results, "append", append)
    benchmark.teacher(again)
    assert benchmark._digest() == replaced  # found finished, not trained for another cycle
    assert results.read("teacher")["cycle"].tolist() == [1, 2]
    assert pd.read_csv(history)["cycle"].tolist() == [1, 2]
