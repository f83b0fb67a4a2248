import subprocess
import sys
import textwrap

import pandas as pd
import pytest

from helpers import models, results
from helpers.data import HOME


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def test_rows_are_appended_and_new_columns_added(folder):
    results.append("table", {"a": 1})
    results.append("table", {"a": 2, "b": "x, y"})
    table = results.read("table")
    assert table["a"].tolist() == [1, 2]
    assert table["b"].fillna("").tolist() == ["", "x, y"]
    assert [path.name for path in folder.iterdir() if path.suffix == ".csv"] == ["table.csv"]


def test_line_ends_inside_a_cell_outlive_every_append(folder):
    results.append("table", {"a": "one\r\ntwo\rthree\nfour"})
    path = results.append("table", {"a": "five"})
    assert path.read_bytes() == b'a\n"one\r\ntwo\rthree\nfour"\nfive\n'


def test_a_finished_row_is_recognised(folder):
    assert not results.finished("table", {"a": 1})
    results.append("table", {"a": 1, "b": 0.5, "c": "x"})
    assert results.finished("table", {"a": 1, "b": 0.5})
    assert results.finished("table", {"c": "x"})
    assert not results.finished("table", {"a": 1, "b": 0.6})


def test_a_missing_table_says_how_it_is_made(folder):
    with pytest.raises(FileNotFoundError, match=r"python -m helpers\.benchmark speed"):
        results.read("speed")


def test_two_processes_lose_no_row(folder):
    script = """
        import sys
        from pathlib import Path
        from helpers import models, results
        results.RESULTS = Path(sys.argv[1])
        for number in range(20):
            results.append("table", {"writer": sys.argv[2], "number": number})
    """
    writers = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(folder), name]) for name in "ab"
    ]
    assert [writer.wait() for writer in writers] == [0, 0]
    table = results.read("table")
    assert sorted(zip(table["writer"], table["number"], strict=True)) == [
        (w, n) for w in "ab" for n in range(20)
    ]


def test_an_unwritable_folder_leaves_the_old_file(folder, monkeypatch):
    path = results.append("table", {"a": 1})

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("csv.DictWriter.writerows", full)
    with pytest.raises(OSError, match="No space left"):
        results.append("table", {"a": 2})
    assert results.read("table")["a"].tolist() == [1]
    assert path.exists()
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("path", sorted((HOME / "data" / "results").glob("*.csv")), ids=lambda p: p.stem)
def test_every_published_row_says_where_it_comes_from(path):
    table = pd.read_csv(path, dtype=str).fillna("")
    for column in ("command", "commit", "device", "threads", "seed", "date", "versions"):
        assert (table[column] != "").all(), column
    assert not table["commit"].str.contains("unknown").any()
    assert table["date"].str.fullmatch(r"\d{4}-\d{2}-\d{2}").all()
    if "correct" in table:
        measured = table[table["correct"] != ""]
        assert len(measured)
        assert (measured["correct"].astype(int) <= measured["total"].astype(int)).all()


def test_provenance_names_this_machine():
    row = results.provenance(seed=3)
    assert row["seed"] == "3"
    assert row["command"].startswith("python -m helpers.benchmark")
    assert "torch" in row["versions"]
    assert "cores" in row["device"]


def test_the_readme_shows_what_the_files_say():
    _, rest = (HOME / "README.md").read_text().split(results.MARKS[0])
    assert rest.split(results.MARKS[1])[0].strip() == results.markdown()


def test_the_readme_section_is_made_from_the_files(folder, tmp_path):
    results.append(
        "teacher", {"model": "vgg19", "epochs": 1, "cycle": 1, "correct": 5, "total": 10, "device": "abacus"}
    )
    results.append(
        "teacher",
        {
            "model": "resnet50",
            "epochs": 2,
            "cycle": 1,
            "correct": 1,
            "total": 10,
            "device": "abacus",
            "pixels": 16,
        },
    )
    results.append(
        "teacher",
        {"model": "vgg19", "epochs": 3, "cycle": 2, "correct": 9421, "total": 10_000, "device": "abacus"},
    )
    experiment = {
        "student": "s",
        "teacher": "v",
        "data": "d",
        "train_pictures": 5_000,
        "epochs": 2,
        "total": 100,
    }
    for seed in (0, 1):
        for arm, correct in (("alone", 90), ("taught", 92 + 2 * seed)):
            results.append("distillation", experiment | {"arm": arm, "correct": correct, "seed": seed})
    results.append(
        "distillation", experiment | {"arm": "alone", "correct": 1, "seed": 2}
    )  # its pair is not there yet
    results.append(
        "distillation", experiment | {"arm": "alone", "correct": 1, "seed": 0, "train_pictures": 10}
    )  # a smaller one
    page = tmp_path / "README.md"
    page.write_text(f"above\n{results.MARKS[0]}\nold\n{results.MARKS[1]}\nbelow\n")
    results.write_readme(page)
    text = page.read_text()
    assert "VGG-19 on CIFAR-10, 1 + 3 epochs on abacus: 94.2% (9,421 of 10,000; 93.7 to 94.7)" in text
    assert "resnet50 on CIFAR-10, 2 (16 x 16 pixels) epochs on abacus: 10.0% (1 of 10" in text
    assert (
        "93.0% on the test split, 90.0% alone: a mean gain of 3.00 points (standard error 1.00, 2 seeds, in pairs)"
        in text
    )
    assert text.startswith("above")
    assert text.endswith("below\n")
    assert "old" not in text


def experiment(*rows, **changed):
    """Return rows of (arm, correct, weights, seed) of one experiment."""
    shared = {
        "student": "s",
        "teacher": "v",
        "data": "d",
        "train_pictures": 5_000,
        "epochs": 2,
        "total": 100,
    } | changed
    return [
        shared | {"arm": arm, "correct": correct, "weights": weights, "seed": seed}
        for arm, correct, weights, seed in rows
    ]


def test_pairs_take_the_last_teacher_of_a_name_and_the_last_of_equal_experiments():
    rows = experiment(("alone", 50, None, 0), ("taught", 60, None, 0), ("taught", 75, "sha256:1", 0))
    assert results.pairs(pd.DataFrame(rows[:2]))[1].loc[0].tolist() == [50, 60]
    row, wide = results.pairs(pd.DataFrame(rows))
    assert wide.loc[0].tolist() == [50, 75]  # alone needs no teacher, and is not trained again for another
    assert row["weights"] == "sha256:1"
    equal = experiment(("alone", 10, None, 0), ("taught", 20, None, 0), student="t")
    assert results.pairs(pd.DataFrame(rows + equal))[0]["student"] == "t"
    larger = experiment(("smoothed", 1, None, 0), epochs=9)  # no pair yet
    assert results.pairs(pd.DataFrame(rows + larger))[1].loc[0].tolist() == [50, 75]
    with pytest.raises(ValueError, match="runs must hold a seed with both arms"):
        results.pairs(pd.DataFrame(larger))


def test_pairs_hold_the_smoothed_arm_where_every_seed_has_it():
    rows = experiment(
        *(
            (arm, correct + seed, None, seed)
            for seed in (0, 1)
            for arm, correct in (("alone", 50), ("taught", 60))
        )
    )
    smoothed = experiment(("smoothed", 55, None, 0), ("smoothed", 57, None, 1))
    assert list(results.pairs(pd.DataFrame(rows + smoothed[:1]))[1]) == ["alone", "taught"]
    assert results.pairs(pd.DataFrame(rows + smoothed))[1]["smoothed"].tolist() == [55, 57]


def test_the_grid_is_the_last_experiment_with_the_student_alone_apart():
    def cell(temperature, alpha, correct, weights=None, **changed):
        (row,) = experiment(("", correct, weights, 0), **changed)
        return row | {"temperature": temperature, "alpha": alpha}

    old = [cell(temperature, alpha, 1) for temperature in (1, 4) for alpha in (0.1, 0.9)]
    row, table, alone = results.grid(pd.DataFrame(old))
    assert (table == 1).all(axis=None)
    assert alone is None
    new = [
        cell(1, 0, 9, epochs=3),
        cell(1, 0.1, 2, "sha256:1", epochs=3),
        cell(1, 0.1, 5, "sha256:2", epochs=3),
    ]
    new += [cell(4, 0.1, 6, "sha256:2", epochs=3)]
    row, table, alone = results.grid(pd.DataFrame(old + new))
    assert (row["epochs"], alone["correct"]) == (3, 9)
    assert table.loc[0.1].tolist() == [5, 6]
    with pytest.raises(ValueError, match=r"runs must be rows of distillation_grid\.csv"):
        results.grid(pd.DataFrame(old).drop(columns="alpha"))


def test_lineage_names_the_teacher_of_the_rows_and_what_became_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    runs = pd.DataFrame(
        {"weights": ["sha256:a", "sha256:a", None], "teacher_correct": [9_228, 9_228, None], "total": 10_000}
    )
    first, latest = "92.3% (9,228 of 10,000; 91.7 to 92.8)", "93.2% (9,320 of 10,000; 92.7 to 93.7)"
    assert results.lineage(runs) == first  # where there is no teacher, it cannot have been trained on
    results.append(
        "teacher",
        {"model": "vgg19", "correct": 9_320, "total": 10_000},
        {"model": "resnet50", "correct": 1, "total": 10_000},
    )
    assert results.lineage(runs) == first
    (tmp_path / "checkpoints").mkdir()
    file = models.save(
        models.build("micro_convnet", width=0.25), tmp_path / "checkpoints" / "vgg19.safetensors"
    )
    assert results.lineage(runs) == f"{first}, since then trained on to {latest}"
    runs.loc[2] = models.fingerprint(file), 9_319, 10_000  # one picture off: measured on another machine
    assert (
        results.lineage(runs)
        == f"{first}, since then trained on to {latest} or {latest.replace('9,320', '9,319')}"
    )
    with pytest.raises(ValueError, match="runs must have rows with weights"):
        results.lineage(runs.drop(columns="weights"))


def test_the_table_says_what_its_own_rows_stand_on(folder):
    sizes = {
        f"{key}{name}": 1.0
        for key in ("", "teacher_", "int8_")
        for name in ("onnx_bytes", "zip_bytes", "latency_ms_1_threads")
    }
    row = sizes | {"point": "lossless", "seed": 0, "correct": 90, "int8_correct": 90, "total": 100}
    results.append(
        "combined",
        row | {"weights": "sha256:a", "teacher_correct": 91},
        row | {"weights": "sha256:b", "teacher_correct": 95},
    )
    assert (
        results.series_table().attrs["lineage"] == "95.0% (95 of 100; 88.8 to 97.8)"
    )  # the earlier row is superseded
    assert (
        "made from or taught by: 95.0% (95 of 100; 88.8 to 97.8). Points are against it."
        in results.markdown()
    )


def test_students_stand_in_the_table_taught_and_in_the_list_with_their_twin(folder):
    def row(student, taught_by, epochs, correct):
        teacher = {
            "teacher_onnx_bytes": 80_000_000,
            "teacher_correct": 9_200,
            "teacher_latency_ms_1_threads": 5.0,
        }
        own = {
            "onnx_bytes": 4_000_000,
            "int8_zip_bytes": 1_000_000,
            "latency_ms_1_threads": 0.5,
            "int8_latency_ms_1_threads": 0.125,
        }
        count = {
            "correct": correct,
            "int8_correct": correct - 20,
            "total": 10_000,
            "parameters": 1_000_000,
            "train_pictures": 45_000,
        }
        return (
            {"student": student, "taught_by": taught_by, "epochs": epochs, "seed": 0} | teacher | own | count
        )

    results.append(
        "students", row("tiny_convnet", "vgg19", 3, 8_000), row("tiny_convnet", "vgg19_rank6", 30, 9_150)
    )
    results.append(
        "students", row("tiny_convnet", "nobody", 30, 9_050), row("small_convnet", "vgg19", 2, 100)
    )
    results.append(
        "students", row("small_convnet", "vgg19", 1, 200) | {"before": "sha256:0123456789"}
    )  # trained on
    table = results.series_table().set_index("model")
    whole, rounded = table.loc["distilled TinyConvNet"], table.loc["distilled TinyConvNet, int8"]
    assert [whole["times smaller"], rounded["times smaller"]] == [20, 80]
    assert [whole["times faster"], rounded["times faster"]] == [10, 40]
    assert [whole["points"], rounded["points"]] == pytest.approx([-0.5, -0.7])
    assert whole["usually claimed"] == "20 x, -1.4 points, 8.1 x"
    assert table.loc["distilled small_convnet", "accuracy"] == "2.0% (200 of 10,000)"
    text = results.markdown()
    assert "45,000 pictures, 30 epochs, seed 0: taught by vgg19_rank6 91.5% (9,150 of 10,000; " in text
    assert "45,000 pictures, 1 more epochs, seed 0" in text
    assert "; alone 90.5% (9,050 of 10,000; " in text
