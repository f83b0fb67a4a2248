import subprocess
import sys
import textwrap

import pandas as pd
import pytest

from helpers import results
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
        from helpers import results
        results.RESULTS = Path(sys.argv[1])
        for number in range(20):
            results.append("table", {"writer": sys.argv[2], "number": number})
    """
    writers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(folder), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    table = results.read("table")
    assert sorted(zip(table["writer"], table["number"], strict=True)) == [(w, n) for w in "ab" for n in range(20)]


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
    results.append("teacher", {"model": "vgg19", "epochs": 1, "cycle": 1, "correct": 5, "total": 10, "device": "abacus"})
    results.append("teacher", {"model": "resnet50", "epochs": 2, "cycle": 1, "correct": 1, "total": 10, "device": "abacus", "pixels": 16})
    results.append("teacher", {"model": "vgg19", "epochs": 3, "cycle": 2, "correct": 9421, "total": 10_000, "device": "abacus"})
    experiment = {"student": "s", "teacher": "v", "data": "d", "train_pictures": 5_000, "epochs": 2, "total": 100}
    for seed in (0, 1):
        for arm, correct in (("alone", 90), ("taught", 92 + 2 * seed)):
            results.append("distillation", experiment | {"arm": arm, "correct": correct, "seed": seed})
    results.append("distillation", experiment | {"arm": "alone", "correct": 1, "seed": 2})  # its pair is not there yet
    results.append("distillation", experiment | {"arm": "alone", "correct": 1, "seed": 0, "train_pictures": 10})  # a smaller one
    page = tmp_path / "README.md"
    page.write_text(f"above\n{results.MARKS[0]}\nold\n{results.MARKS[1]}\nbelow\n")
    results.write_readme(page)
    text = page.read_text()
    assert "VGG-19 on CIFAR-10, 1 + 3 epochs on abacus: 94.2% (9,421 of 10,000; 93.7 to 94.7)" in text
    assert "resnet50 on CIFAR-10, 2 (16 x 16 pixels) epochs on abacus: 10.0% (1 of 10" in text
    assert "93.0% on the test split, 90.0% alone: a mean gain of 3.00 points (standard error 1.00, 2 seeds, in pairs)" in text
    assert text.startswith("above")
    assert text.endswith("below\n")
    assert "old" not in text


def test_pairs_of_two_teachers_of_one_name_are_kept_apart():
    experiment = {"student": "s", "teacher": "v", "data": "d", "train_pictures": 5_000, "epochs": 2, "total": 100}
    arms = [("alone", 50, None), ("taught", 60, None), ("alone", 70, "sha256:1"), ("taught", 75, "sha256:1")]
    rows = [experiment | {"arm": arm, "correct": correct, "weights": weights, "seed": 0} for arm, correct, weights in arms]
    for order in (rows, rows[2:] + rows[:2]):
        first, wide = results.pairs(pd.DataFrame(order))
        expected = (50, 60) if order is rows else (70, 75)
        assert (wide.loc[0, "alone"], wide.loc[0, "taught"]) == expected
        assert first["correct"] == order[0]["correct"]


def test_lineage_names_the_teacher_of_the_rows_and_what_became_of_it(folder):
    results.append("teacher", {"model": "vgg19", "correct": 9_228, "total": 10_000}, {"model": "resnet50", "correct": 1, "total": 10_000})
    runs = pd.DataFrame({"teacher_correct": [9_228, None, 9_228], "total": 10_000})
    first = "92.3% (9,228 of 10,000; 91.7 to 92.8)"
    assert results.lineage(runs) == first
    results.append("shipped", {"file": "vgg19", "teacher_correct": 9_228, "total": 10_000})
    assert results._made_from() == ""
    results.append("teacher", {"model": "vgg19", "correct": 9_320, "total": 10_000})
    latest = "93.2% (9,320 of 10,000; 92.7 to 93.7)"
    assert results.lineage(runs) == results._made_from() == f"{first}, since then trained on to {latest}"
    runs.loc[3] = 9_320, 10_000
    assert results.lineage(runs) == f"{first}, since then trained on to {latest} or {latest}"
    with pytest.raises(ValueError, match="runs must have rows with teacher_correct"):
        results.lineage(runs.drop(columns="teacher_correct"))


def test_students_stand_in_the_table_taught_and_in_the_list_with_their_twin(folder):
    def row(student, taught_by, epochs, correct):
        teacher = {"teacher_onnx_bytes": 80_000_000, "teacher_correct": 9_200, "teacher_latency_ms_1_threads": 5.0}
        own = {"onnx_bytes": 4_000_000, "int8_zip_bytes": 1_000_000, "latency_ms_1_threads": 0.5, "int8_latency_ms_1_threads": 0.125}
        count = {"correct": correct, "int8_correct": correct - 20, "total": 10_000, "parameters": 1_000_000, "train_pictures": 45_000}
        return {"student": student, "taught_by": taught_by, "epochs": epochs, "seed": 0} | teacher | own | count

    results.append("students", row("tiny_convnet", "vgg19", 3, 8_000), row("tiny_convnet", "vgg19_rank6", 30, 9_150))
    results.append("students", row("tiny_convnet", "nobody", 30, 9_050), row("small_convnet", "vgg19", 2, 100))
    results.append("students", row("small_convnet", "vgg19", 1, 200) | {"before": "sha256:0123456789"})  # trained on
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
