"""Recipes and the one function that runs them, on digits and narrow networks: what it plans, what it writes, and that nothing runs twice."""

import copy
import functools
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torchvision
from torch.utils.benchmark import set_torch_threads

from helpers import channels, models, pruning, quantization
from helpers.benchmark import changes, peers, results, run
from helpers.benchmark.__main__ import listed, main, parser
from helpers.benchmark.bench import Bench, plan, run_all, run_beside
from helpers.benchmark.changes import Lab, gradual
from helpers.benchmark.recipe import fresh, opened
from helpers.benchmark.recipes import NETWORKS, Recipe
from helpers.data import HOME, load_data
from helpers.evaluation import paired
from helpers.files import digest, fingerprint

UNCHANGED = Recipe.__dataclass_fields__["change"].default


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with the rows of a few recipes: the teachers, a control, a factorized and pruned network, a student."""
    bench = Bench(tmp_path_factory.mktemp("bench"), "digits")
    failed = run_all(
        plan(["control", "factorized4_zeros60", "tiny_convnet_taught"], bench),
        functools.partial(attempt, bench=bench),
    )
    assert failed == []
    return bench


@pytest.fixture(scope="module")
def scanned():
    """A function that scans the channels of a network, once where several recipes start from the same weights."""
    tables = {}

    def scan(model, few, calibration):
        weights = digest(model.state_dict())
        if weights not in tables:
            tables[weights] = channels.sensitivity(
                model, few, (0.5,), unit="channel", calibration=calibration
            )
        return tables[weights].assign(recalibrated=1.0)  # of an untrained network: every layer may lose half

    return scan


def attempt(job, bench):
    run.run(*job, bench)
    return ""


class TestRecipes:
    def test_every_parent_is_an_architecture_or_a_recipe_without_a_circle(self):
        for name, recipe in NETWORKS.items():
            family, _, own = recipe.start.rpartition("/")
            assert recipe.start in NETWORKS or own in (
                torchvision.models.list_models() if family else models.MODELS
            ), name
            assert recipe.teacher is None or recipe.teacher in NETWORKS, name
            assert recipe.reference in NETWORKS, name
        bench = Bench()
        for name in NETWORKS:
            ancestors, open_ = set(), [name]
            while open_:
                for parent in NETWORKS[open_.pop()].parents:
                    assert parent != name
                    if parent not in ancestors:
                        ancestors.add(parent)
                        open_.append(parent)
        assert bench.results == HOME / "data" / "results"

    def test_files_and_labels_are_named_once(self):
        for names in (
            [r.file for r in NETWORKS.values() if r.file],
            [r.label for r in NETWORKS.values() if r.label],
        ):
            assert len(set(names)) == len(names)

    def test_every_file_of_checkpoints_belongs_to_a_recipe(self):
        there = {path.stem for path in (HOME / "data" / "checkpoints").glob("*.safetensors")}
        assert there == {recipe.file for recipe in NETWORKS.values() if recipe.file}

    def test_gradual_goes_on_from_the_zeros_that_are_there(self):
        model = models.build("tiny_convnet", width=0.2)
        (pruner,) = gradual(0.8)(model)
        assert (pruner.schedule.initial_sparsity, pruner.schedule.final_sparsity) == (0, 0.8)
        pruning.prune_once(model, 0.5)
        assert gradual(0.8)(model)[0].schedule.initial_sparsity == pytest.approx(0.5, abs=0.001)
        assert gradual(0.3)(model)[0].schedule.initial_sparsity == 0.3

    def test_smaller_pictures_are_means(self):
        data = load_data("digits", train_limit=20)
        smaller = changes.at_pixels(16)(data, None, 0)
        means = data.test.images.float().reshape(-1, 3, 16, 2, 16, 2).mean((3, 5))
        assert (smaller.test.images.float() - means).abs().max() <= 0.5
        assert smaller.train.images.shape[2:] == (16, 16)

    def test_a_shuffled_teacher_keeps_its_first_choice_and_no_other(self):
        torch.manual_seed(0)
        answers = torch.randn(64, 10)
        told = NETWORKS["micro12_shuffled"].told(torch.nn.Identity())(answers)
        assert torch.equal(told.argmax(1), answers.argmax(1))
        assert torch.equal(told.sort(1).values, answers.sort(1).values)
        assert not torch.equal(told, answers)

    def test_a_recorded_teacher_is_asked_for_each_picture_and_its_mirror_image(self, tmp_path, monkeypatch):
        data = load_data("digits", train_limit=20)
        data = replace(data, train=replace(data.train, mirror=True))
        torch.manual_seed(0)
        teacher, given = models.build("micro_convnet", width=0.2).eval(), {}
        monkeypatch.setattr(run, "opened", lambda name, path: teacher)
        monkeypatch.setattr(run, "fit", lambda model, data, **rest: given.update(rest, data=data))
        recipe = NETWORKS["tiny_convnet_taught"]
        bench = SimpleNamespace(
            file=lambda name: None, mark=str, work=tmp_path, trial=True, length=lambda recipe: 1
        )
        run.train(models.build("micro_convnet", width=0.2), recipe, data, ("some", 0), bench)
        train = given["data"].train
        assert len(train) == 2 * len(data.train)
        assert given["loss"].teacher is None
        mirrored = replace(data.train, images=data.train.images.flip(3))
        expected = torch.cat([changes.predict(teacher, some) for some in (data.train, mirrored)]).softmax(1)
        assert torch.allclose(train.labels, expected, atol=0.01)  # bfloat16
        monkeypatch.setattr(run.distillation, "record", None)  # the answers were kept
        run.train(models.build("micro_convnet", width=0.2), recipe, data, ("other", 0), bench)
        assert torch.equal(given["data"].train.labels, train.labels)

    @pytest.mark.parametrize(
        "name", [name for name, recipe in NETWORKS.items() if recipe.change is not UNCHANGED]
    )
    def test_every_change_can_be_tried_on_a_narrow_network(self, name, scanned):
        recipe, data = NETWORKS[name], load_data("digits", train_limit=256)
        model = fresh(recipe.start, 10, 0.25)
        few = data.validation.take(slice(0, 50))

        def scan():
            return scanned(model, few, data.train)

        changed = recipe.change(copy.deepcopy(model), Lab(data, scan, narrow=True)).eval()
        old, new = model.state_dict(), changed.state_dict()
        assert {k: v.shape for k, v in old.items()} != {k: v.shape for k, v in new.items()} or any(
            not torch.equal(old[key], new[key]) for key in old
        )
        assert changed(data.test.images[:2].float()).shape == (2, 10)

    def test_larger_pictures_are_interpolated(self):
        data = load_data("digits", train_limit=20)
        larger = changes.at_pixels(64)(data, None, 0)
        expected = torch.nn.functional.interpolate(data.test.images.float(), scale_factor=2, mode="bilinear")
        assert (larger.test.images.float() - expected).abs().max() <= 0.5

    def test_a_network_of_torchvision_is_built_changed_kept_and_opened(self, tmp_path):
        model = fresh("mobilenet_channels", 10)
        assert type(model) is torchvision.models.MobileNetV3
        data = load_data("digits", train_limit=20)
        small = NETWORKS["mobilenet_channels"].change(model, Lab(data, None))
        path = run.keep(small, tmp_path / "small.safetensors", None)
        back = opened("mobilenet_channels", path)
        assert sum(p.numel() for p in back.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
        assert all(
            torch.equal(a.half(), b.half())
            for a, b in zip(small.parameters(), back.parameters(), strict=True)
        )
        assert type(fresh("tiny_convnet_taught", 10, 0.25)) is type(models.build("tiny_convnet"))

    def test_the_least_sure_are_those_of_small_largest_probability(self):
        data = load_data("digits", train_limit=200)
        torch.manual_seed(0)
        model = models.build("tiny_convnet", width=0.2)
        chosen = changes.least_sure(0.5, 0.1)(data, model, 0).train
        assert len(chosen) == 120
        sure = changes.predict(model, data.train, precision="auto").softmax(1).amax(1)
        images = {image.numpy().tobytes() for image in chosen.images}
        assert all(
            image.numpy().tobytes() in images for image in data.train.images[sure.argsort(stable=True)[:100]]
        )

    def test_a_circle_of_recipes_is_refused(self, monkeypatch):
        for name, start in (("egg", "hen"), ("hen", "egg")):
            monkeypatch.setitem(NETWORKS, name, Recipe(start=start))
        with pytest.raises(
            ValueError, match=r"^start must lead back to an architecture, got a circle through 'egg'"
        ):
            fresh("egg", 10)


class TestPlan:
    def test_parents_come_first_and_are_added_where_they_are_missing(self, tmp_path):
        graph = plan(["channels17_zeros75"], Bench(tmp_path, "digits"))
        assert graph[("channels17_zeros75", 0)] == {("channels17", 0), ("teacher", 2)}
        assert graph[("channels17", 0)] == {("teacher", 2)}
        assert graph[("teacher", 2)] == {("teacher2", 1)}
        assert graph[("teacher2", 1)] == {("teacher1", 0)}
        assert graph[("teacher1", 0)] == set()

    def test_what_is_published_serves_runs_into_another_folder(self, tmp_path):
        assert plan(["curve_pictures_4"], Bench(tmp_path)) == {("curve_pictures_4", 0): set()}

    def test_published_rows_are_there_and_nothing_published_is_written_over(self, tmp_path, monkeypatch):
        assert plan(["teacher", "one_call_longer", "channels17_zeros75", "micro12_alone"], Bench()) == {}
        name = "fast_convnet_2m_thin_zeros75"
        monkeypatch.setitem(NETWORKS, name, replace(NETWORKS[name], epochs=9))
        with pytest.raises(ValueError, match=rf"out must be given for {name}: .* is published"):
            plan([name], Bench())

    @pytest.mark.parametrize("otherwise", [{"data": "digits"}, {"epochs": 1}])
    def test_other_settings_ask_for_a_folder(self, otherwise):
        with pytest.raises(ValueError, match="out must name a folder"):
            Bench(**otherwise)

    def test_what_needs_a_failed_run_is_left_out_and_the_others_go_on(self):
        graph = {("a", 0): set(), ("b", 0): {("a", 0)}, ("c", 0): {("b", 0)}, ("d", 0): set()}
        done = []

        def work(job):
            done.append(job)
            return "broken" if job[0] == "a" else ""

        assert run_all(graph, work) == ["a, seed 0: broken"]
        assert sorted(done) == [("a", 0), ("d", 0)]

    def test_side_by_side_the_first_of_the_plan_go_first_and_parents_before_them(self):
        graph = {
            ("a", 0): set(),
            ("b", 0): {("a", 0)},
            ("c", 0): {("b", 0), ("x", 0)},
            ("x", 0): set(),
            ("y", 0): set(),
            ("z", 0): set(),
        }
        begun, ended = [], []
        both, freed = threading.Barrier(2, timeout=30), threading.Event()

        def work(job):
            begun.append(job[0])
            if job[0] in "ax":  # at the same time, or the barrier breaks
                both.wait()
            if job[0] == "b":
                freed.set()
            if job[0] == "x":  # its place is taken until a is done, and b with it is ready
                assert freed.wait(30)
            ended.append(job[0])
            return "broken" if job[0] == "x" else ""

        assert run_beside(graph, work, 2) == ["x, seed 0: broken"]
        assert begun[:2] == ["a", "x"]
        assert begun.index("b") < begun.index("z")  # it became ready later, and is worth more
        assert set(ended) == {"a", "b", "x", "y", "z"}  # c needs x

    @pytest.mark.parametrize(
        "asked", ["--workers 0", "--workers -1", "--workers 2 --engine ray", "--workers 2 --measure"]
    )
    def test_workers_that_cannot_be_are_refused(self, asked, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["helpers.benchmark", "teacher", *asked.split()])
        with pytest.raises(SystemExit):
            main()
        assert (
            f"workers must be 1 or more, and 1 with --measure or --engine ray; got {asked.split()[1]}"
            in capsys.readouterr().err
        )

    def test_workers_make_the_same_rows_in_processes(self, tmp_path, monkeypatch):
        asked = "helpers.benchmark teacher1 --data digits --formats torch --workers 2 --seeds 0 1"
        monkeypatch.setattr(sys, "argv", [*asked.split(), "--out", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        rows = results.latest(tmp_path / "results")
        assert sorted(rows[rows["network"] == "teacher1"]["seed"]) == [0, 1]


class TestRun:
    def test_rows_say_what_they_stand_on(self, bench):
        rows = results.latest(bench.results).set_index(["network", "format"])
        marks = {
            name: f"{name}@{fingerprint(bench.file(name))}"
            for name in ("teacher1", "teacher2", "teacher", "factorized4")
        }
        assert rows.loc[("factorized4_zeros60", "onnx"), "start"] == marks["factorized4"]
        assert rows.loc[("factorized4_zeros60", "onnx int8"), "teacher"] == marks["teacher"]
        assert rows.loc[("teacher2", "torch"), "start"] == marks["teacher1"]
        assert rows.loc[("teacher1", "torch"), "start"] == "vgg19"
        assert rows.loc[("tiny_convnet_taught", "onnx"), ["start", "teacher"]].tolist() == [
            "tiny_convnet",
            marks["teacher"],
        ]
        assert (rows["data"] == "digits").all()
        assert (rows["commit"] != "").all()

    def test_formats_shrink_and_answers_are_what_was_counted(self, bench):
        rows = results.latest(bench.results)
        labels = load_data("digits").test.labels
        for row in rows.to_dict("records"):
            answers = results.answers(row, bench.results)
            assert int((answers == labels).sum()) == row["correct"]
            assert row["total"] == len(labels) == 300
        own = rows[rows["network"] == "factorized4_zeros60"].set_index("format")
        assert own.loc["onnx int8", "zip_bytes"] < own.loc["onnx int8", "bytes"] < own.loc["onnx", "bytes"]
        assert own.loc["onnx", "agreeing"] == 1
        assert 0.3 < own["nonzeros"].iloc[0] / own["parameters"].iloc[0] < 0.5
        assert (own["latency_low_ms"] <= own["latency_ms"]).all()
        assert (own["reference_ms"] > 0).all()
        assert rows[["as_is", "recalibrated"]].notna().all().all()

    def test_no_column_is_empty(self, bench):
        rows = results.latest(bench.results).replace("", pd.NA)
        assert [column for column in rows.drop(columns="memory_mb") if rows[column].isna().all()] == []

    def test_a_second_call_trains_nothing(self, bench, monkeypatch):
        before = (bench.results / "networks.csv").read_text()
        assert plan(["control", "factorized4_zeros60", "tiny_convnet_taught"], bench) == {}
        name = "factorized4_zeros60"
        monkeypatch.setitem(NETWORKS, name, replace(NETWORKS[name], start="teacher2"))
        assert set(plan([name], bench)) == {(name, 0)}  # other parents: another run
        assert (bench.results / "networks.csv").read_text() == before

    def test_measured_anew_a_network_has_the_same_answers(self, bench):
        before = results.row("control", folder=bench.results)
        run.remeasure("control", 0, bench)
        after = results.row("control", folder=bench.results)
        same = [
            "network",
            "start",
            "teacher",
            "weights",
            "correct",
            "as_is",
            "recalibrated",
            "epochs",
            "bytes",
        ]
        assert after[same].tolist() == before[same].tolist()
        assert len(results.read("networks", bench.results).query("network == 'control'")) == 2
        with pytest.raises(ValueError, match="name must be of a network that has rows"):
            run.remeasure("zeros98_fresh", 0, bench)

    def test_another_seeds_network_is_not_measured_in_its_place(self, bench, tmp_path):
        other = replace(bench, out=tmp_path)
        results.append(
            "networks", [{**results.row("control", folder=bench.results), "seed": 7}], other.results
        )
        other.target("control", 0).parent.mkdir(parents=True)
        shutil.copy(bench.target("control", 0), other.target("control", 0))
        with pytest.raises(ValueError, match="with seed 7"):
            run.remeasure("control", 7, other)

    def test_trials_keep_their_networks_apart(self, bench):
        whole = replace(bench, data="cifar10")
        assert bench.target("control", 0).exists()
        assert not whole.target("control", 0).exists()
        assert replace(whole, epochs=1).work != whole.work != bench.work

    def test_networks_beside_their_reference(self, bench):
        table = results.beside(["factorized4_zeros60", "control"], bench.results).set_index(
            ["network", "format"]
        )
        reference = results.row("teacher", "onnx", folder=bench.results)
        row = table.loc[("factorized4_zeros60", "onnx int8")]
        assert row["times_smaller"] == reference["bytes"] / row["zip_bytes"]
        assert row["points"] == pytest.approx(100 * (row["correct"] - reference["correct"]) / 300)
        shown = results.compared(["factorized4_zeros60"], ["onnx"], bench.results)
        assert shown["network"].tolist() == ["factorized4_zeros60"]
        right = table.loc[("factorized4_zeros60", "onnx"), "correct"]
        assert shown["accuracy"].iloc[0].endswith(f"({right:.0f} of 300)")

    def test_a_scan_is_made_once(self, bench, monkeypatch):
        monkeypatch.setitem(run.RATIOS, "weight", (0.9,))
        first = run.scan("teacher", "weight", bench)
        assert len(results.read("scans", bench.results)) == len(first) == 2 * 17
        assert run.scan("teacher", "weight", bench).equals(first)
        assert set(first.columns) >= {"layer", "ratio", "recalibrated", "accuracy"}

    def test_the_list_says_what_is_there(self, bench):
        lines = {
            line.split()[0]: line
            for line in listed(["factorized4_zeros60", "zeros98_fresh"], bench).splitlines()
        }
        assert "there" in lines["factorized4_zeros60"]
        assert "from factorized4, taught by teacher" in lines["factorized4_zeros60"]
        assert "0 of 1 seeds" in lines["zeros98_fresh"]
        assert set(listed(list(NETWORKS), Bench()).split()) >= set(NETWORKS)

    def test_the_example_of_the_readme_runs(self, tmp_path, monkeypatch):
        page = (HOME / "README.md").read_text()
        block = next(
            b
            for b in page.split("```python\n")
            if b.startswith("from helpers.benchmark.recipes import NETWORKS")
        )
        before = dict(NETWORKS)
        try:
            exec(block.split("```")[0], {})
            assert isinstance(NETWORKS["pruned99"], Recipe)
            NETWORKS["teacher"] = replace(
                NETWORKS["teacher"], start="vgg19"
            )  # without the two cycles before it
            bench = Bench(tmp_path, "digits")
            assert run_all(plan(["pruned99"], bench), functools.partial(attempt, bench=bench)) == []
        finally:
            NETWORKS.clear()
            NETWORKS.update(before)
        row = results.row("pruned99", "onnx int8", folder=tmp_path / "results")
        assert row["nonzeros"] < 0.05 * row["parameters"]


class TestPeers:
    @pytest.fixture(scope="class")
    def model(self):
        torch.manual_seed(0)
        return models.build("vgg11", width=0.25)

    def test_torch_pruning_stays_below_our_macs(self, model):
        ours = peers.profiling.count_macs
        thinner = peers.as_few_macs(lambda m, lab: pruning.prune_channels(m, torch.zeros(1, 3, 32, 32), 0.5))(
            model, None
        )
        assert ours(thinner) <= ours(pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), 0.5))
        assert thinner(torch.zeros(1, 3, 32, 32)).shape == (1, 10)

    def test_tucker_has_a_quarter_of_the_parameters(self, model):
        pytest.importorskip("tensorly")
        thin = peers.tucker(4)(model, Lab(None, None))
        assert peers.profiling.count_parameters(thin) <= peers.profiling.count_parameters(model) / 4
        assert thin(torch.zeros(1, 3, 32, 32)).shape == (1, 10)

    def test_weights_are_on_the_grid_they_were_rounded_to(self):
        model = models.build("tiny_convnet", width=0.25)
        assert peers.on_grid(model) < 0.05
        assert peers.on_grid(quantization.round_weights(model, 8)) == 1


# -- the command line ------------------------------------------------------------------------------------------------

LAUNCHER = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "-m")  # fmt: skip


def command(folder, *words, launcher=(), fails=False):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "ACCELERATE_USE_CPU": "true",
    }
    line = [
        sys.executable,
        "-m",
        *launcher,
        "helpers.benchmark",
        *words,
        "--data",
        "digits",
        "--out",
        str(folder),
        "--device",
        "cpu",
    ]
    done = subprocess.run(line, cwd=HOME, env=environment, capture_output=True, text=True, timeout=600)
    assert fails or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_two_processes_write_one_row_and_run_one_job_after_the_other(tmp_path):
    """The first thing that asks which process this is must not make it one of one."""
    command(tmp_path, "micro12_alone", "--seeds", "0", "1", launcher=LAUNCHER)
    rows = results.read("networks", tmp_path / "results").query("network == 'micro12_alone'")
    assert rows["seed"].tolist() == [0, 1]
    assert (
        rows["command"]
        .str.startswith("python -m helpers.benchmark micro12_alone --seeds 0 1 --data digits")
        .all()
    )


def test_ray_writes_the_rows_of_the_plain_engine(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    here, rows = Bench(tmp_path / "here", "digits"), {}
    with set_torch_threads(1):  # as many as Ray gives a job
        failed = run_all(plan(["teacher1"], here, [0, 1]), functools.partial(attempt, bench=here))
    assert failed == []
    command(tmp_path / "ray", "teacher1", "--seeds", "0", "1", "--engine", "ray")
    for engine in ("here", "ray"):
        rows[engine] = results.latest(tmp_path / engine / "results").sort_values(["network", "seed"])
    same = [
        "network",
        "seed",
        "start",
        "pictures",
        "epochs",
        "parameters",
        "nonzeros",
        "macs",
        "total",
        "correct",
    ]
    assert rows["here"][same].values.tolist() == rows["ray"][same].values.tolist()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pruned97"], "name must be a recipe"),
        (["zeros95", "--epochs", "1"], "out must name a folder"),
    ],
)
def test_a_wrong_name_and_missing_folder_are_refused_by_the_command_line(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_readme_names_commands_that_the_parser_takes():
    assert parser().parse_args(
        [
            "zeros95",
            "rank7",
            "--data",
            "digits",
            "--out",
            "x",
            "--seeds",
            "0",
            "1",
            "--engine",
            "ray",
            "--list",
        ]
    ).names == ["zeros95", "rank7"]


# -- what is published -----------------------------------------------------------------------------------------------

ROWS = results.latest()


@pytest.mark.parametrize(
    "row", ROWS.to_dict("records"), ids=lambda row: f"{row['network']}-{row['seed']}-{row['format']}"
)
def test_published_answers_are_what_was_counted(row):
    answers = results.answers(row)
    if answers is None:
        pytest.skip("its answers were not kept")
    labels = results.labels() if row["total"] == 10_000 else load_data("cifar10").validation.labels
    assert int((answers == labels[: len(answers)]).sum()) == row["correct"]


def test_a_network_a_seed_and_a_format_are_published_once():
    assert len(ROWS) == len(results.read("networks"))


def test_every_published_row_is_of_a_recipe_and_of_its_parents():
    assert set(ROWS["network"]) <= set(NETWORKS)
    for row in ROWS.to_dict("records"):
        recipe = NETWORKS[row["network"]]
        assert row["start"].partition("@")[0] == recipe.start
        assert row["teacher"].partition("@")[0] == (recipe.teacher or "labels")
        assert row["epochs"] == (recipe.gpu if "--budget gpu" in row["command"] else recipe.epochs)


def test_every_published_network_stands_on_the_one_shipped_teacher():
    """From it, taught by it or compared with it; but for its own two steps, and a GPU's networks beside themselves."""
    teacher = f"teacher@{fingerprint(HOME / 'data' / 'checkpoints' / 'vgg19.safetensors')}"
    own = {"teacher1", "teacher2", "baseline", "resnet50_base", "resnet18", "mobilenet"}
    taught = ROWS[ROWS["teacher"] == teacher]  # by it: they may teach in their turn
    assistants = set(taught["network"] + "@" + taught["weights"])
    for row in ROWS.to_dict("records"):
        if NETWORKS[row["network"]].reference not in own:
            assert row["reference"] == teacher
            assert row["teacher"] in (teacher, "labels", *assistants)
        for parent in (row["start"], row["teacher"]):
            name, _, weights = parent.partition("@")
            assert not weights or len(ROWS[(ROWS["network"] == name) & (ROWS["weights"] == weights)]), parent


def test_every_file_of_answers_belongs_to_a_row():
    named = {results.answers_path(row).name for row in ROWS.to_dict("records")}
    assert {path.name for path in (results.PUBLISHED / "answers").glob("*.npz")} <= named | {"labels.npz"}


def test_two_published_networks_are_compared_in_one_line():
    a, b = (results.answers(results.row(name)) for name in ("teacher", "teacher2"))
    found = paired(a, b, results.labels())
    assert found.only_first - found.only_second == 9348 - 9228
    assert found.p_value < 0.01
