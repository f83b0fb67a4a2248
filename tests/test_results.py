import re
import subprocess
import sys
import textwrap

import pandas as pd
import pytest
import torch

from helpers.benchmark import page as readme
from helpers.benchmark import results
from helpers.benchmark.results import SCHEMA
from helpers.data import HOME


def speed(**values):
    return {column: "" for column in SCHEMA["speed"]} | {"seed": 0} | values


def network(name, form="torch", **values):
    row = dict.fromkeys(SCHEMA["networks"], 0) | {
        "network": name,
        "format": form,
        "reference": f"whole@{W}",
        "weights": "sha256:1",
    }
    return row | {"total": 10, "command": "c", "device": "abacus"} | values


W = "sha256:0"


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_networks_are_called_as_in_the_lessons():
    names = (
        "teacher",
        "fast_convnet_2m_taught",
        "fast_convnet_2m_alone",
        "fast_convnet_2m_zeros70",
        "zeros99",
    )
    assert [results.called(name) for name in names] == [
        "VGG-19",
        "fast_2m",
        "fast_2m alone",
        "fast_2m_zeros70",
        "zeros99",
    ]


def test_rows_are_appended_and_a_missing_table_is_empty(folder):
    assert results.read("speed", folder).columns.tolist() == list(SCHEMA["speed"])
    results.append("speed", [speed(what="a, b", ours=1)], folder)
    results.append("speed", [speed(what="c\nd", ours=2)], folder)
    table = results.read("speed", folder)
    assert table["what"].tolist() == ["a, b", "c\nd"]
    assert table["ours"].tolist() == [1, 2]
    assert [path.name for path in folder.iterdir() if path.suffix == ".csv"] == ["speed.csv"]


@pytest.mark.parametrize("row", [{"what": "a"}, speed() | {"more": 1}])
def test_a_row_of_other_columns_is_refused(row, folder):
    with pytest.raises(ValueError, match=r"rows must have the columns what, .*; not"):
        results.append("speed", [row], folder)
    assert not (folder / "speed.csv").exists()


def test_another_table_is_refused(folder):
    for call in (lambda: results.append("tables", [{}], folder), lambda: results.read("../speed", folder)):
        with pytest.raises(ValueError, match="name must"):
            call()


def test_two_processes_lose_no_row(folder):
    script = """
        import sys
        from pathlib import Path
        from helpers.benchmark import results
        for number in range(20):
            row = {column: "" for column in results.SCHEMA["speed"]} | {"what": sys.argv[2], "ours": number}
            results.append("speed", [row], Path(sys.argv[1]))
    """
    code = textwrap.dedent(script)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(folder), name], cwd=HOME) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    table = results.read("speed", folder)
    assert sorted(zip(table["what"], table["ours"], strict=True)) == [(w, n) for w in "ab" for n in range(20)]


def test_a_full_disk_leaves_the_old_file(folder, monkeypatch):
    results.append("speed", [speed(what="a")], folder)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pandas.DataFrame.to_csv", full)
    with pytest.raises(OSError, match="No space left"):
        results.append("speed", [speed(what="b")], folder)
    assert results.read("speed", folder)["what"].tolist() == ["a"]
    assert not list(folder.glob(".*.part"))


def test_only_the_last_row_of_a_file_counts(folder):
    rows = [
        network("a", correct=1),
        network("a", correct=2),
        network("a", correct=3, seed=1),
        network("a", "onnx", correct=4),
    ]
    results.append("networks", rows, folder)
    assert results.latest(folder)["correct"].tolist() == [2, 3, 4]
    assert results.row("a", folder=folder)["correct"] == 2
    assert results.row("a", seed=1, folder=folder)["correct"] == 3
    with pytest.raises(ValueError, match="name must be of a network that has a row for 'onnx', got 'b'"):
        results.row("b", "onnx", folder=folder)


def test_arms_by_seed_keep_the_seeds_that_all_have(folder):
    rows = [
        network(name, seed=seed, correct=correct)
        for name, seed, correct in (("a", 0, 1), ("a", 1, 2), ("b", 0, 3))
    ]
    results.append("networks", rows, folder)
    table = results.by_seed(folder=folder, left="a", right="b")
    assert table.to_dict() == {"left": {0: 10.0}, "right": {0: 30.0}}


def test_a_network_is_put_beside_the_weights_it_is_compared_with(folder, monkeypatch):
    monkeypatch.setattr(results, "labels", lambda: torch.tensor([0] * 10_000))
    whole = {"weights": W, "bytes": 100, "zip_bytes": 90, "correct": 9_000, "total": 10_000}
    rows = [network("whole", **whole), network("whole", "onnx", **(whole | {"bytes": 120}))]
    rows += [network("whole", "onnx", **(whole | {"weights": "sha256:other", "bytes": 999}), seed=1)]
    small = {
        "bytes": 20,
        "zip_bytes": 10,
        "correct": 8_990,
        "total": 10_000,
        "latency_ms": 2.0,
        "reference_ms": 8.0,
    }
    rows += [network("small", form, **small) for form in ("torch", "onnx", "onnx int8")]
    results.append("networks", rows, folder)
    right = torch.arange(10_000)
    results.keep_answers(rows[1], (right >= 9_000).long(), folder)
    results.keep_answers(rows[4], (right >= 8_990).long(), folder)
    table = results.beside(["small"], folder).set_index("format")
    assert table["times_smaller"].tolist() == [100 / 20, 120 / 20, 120 / 10]
    assert table["times_faster"].tolist() == [4, 4, 4]
    assert table["points"].tolist() == pytest.approx([-0.1] * 3)
    assert table.loc["onnx", "p_value"] == pytest.approx(2 / 2**10)  # ten pictures, all on one side
    ahead = table.loc["onnx", "points"]  # by ten pictures; 1.96 times the root of ten and one is the half
    assert table.loc["onnx", "largest_loss"] == pytest.approx(1.96 * 11**0.5 / 100 - ahead)
    assert pd.isna(table.loc["torch", "p_value"])
    shown = results.compared(["small"], ["onnx"], folder).iloc[0]
    assert shown["accuracy"] == "89.9% (8,990 of 10,000)"


def test_seeds_are_summed_up(folder):
    rows = [network("whole", weights=W, bytes=1, correct=5)]
    rows += [
        network("small", seed=seed, correct=correct, bytes=1, latency_ms=1, reference_ms=1)
        for seed, correct in enumerate((4, 6, 8))
    ]
    results.append("networks", rows, folder)
    row = results.compared(["small"], folder=folder).iloc[0]
    assert row["accuracy"] == "60.0% (3 seeds)"
    assert (row["points"], row["spread"], row["seeds"]) == (pytest.approx(10), pytest.approx(20), 3)
    assert results.beside(["small"], folder)["correct"].tolist() == [4]  # the first alone
    assert results.beside(["small"], folder, every_seed=True)["correct"].tolist() == [4, 6, 8]


def test_a_network_of_another_folder_stands_beside_the_published_one_it_was_made_from(folder):
    teacher = results.row("teacher", "onnx")
    row = network("mine", "onnx int8", bytes=9e6, zip_bytes=8e6, correct=9_340, total=10_000)
    row |= {"reference": teacher["reference"], "latency_ms": 2.0, "reference_ms": 8.0}
    results.append("networks", [row], folder)
    results.keep_answers(row, results.answers(teacher), folder)
    (found,) = results.beside(["mine"], folder).to_dict("records")
    assert found["times_smaller"] == teacher["bytes"] / 8e6
    assert found["points"] == pytest.approx(-0.08)
    assert found["p_value"] == 1  # the teacher's own answers


def test_zeros_are_zipped_before_they_are_counted(folder):
    rows = [network("whole", form, weights=W, bytes=100, correct=5) for form in ("torch", "onnx")]
    some = {"bytes": 100, "zip_bytes": 10, "correct": 5, "parameters": 1000, "latency_ms": 1}
    rows += [network("zeros", form, **some, nonzeros=100) for form in ("torch", "onnx")]
    rows += [network("dense", "onnx", **some, nonzeros=990)]
    results.append("networks", rows, folder)
    table = results.beside(["zeros", "dense"], folder).set_index(["network", "format"])["times_smaller"]
    assert table.to_dict() == {("zeros", "torch"): 1, ("zeros", "onnx"): 10, ("dense", "onnx"): 1}


def test_answers_come_back_and_belong_to_weights(folder):
    row = network("a")
    results.keep_answers(row, torch.tensor([3, 0, 9]), folder)
    assert results.answers(row, folder).tolist() == [3, 0, 9]
    assert results.answers(row | {"weights": "sha256:2"}, folder) is None


@pytest.mark.parametrize("path", sorted((HOME / "data" / "results").glob("*.csv")), ids=lambda p: p.stem)
def test_every_published_table_has_its_schema_and_says_where_rows_come_from(path):
    table = pd.read_csv(path, dtype=str).fillna("")
    assert tuple(table.columns) == SCHEMA[path.stem]
    for column in results.PROVENANCE:
        assert (table[column] != "").all(), column
    assert not table["commit"].str.contains("unknown").any()
    assert table["date"].str.fullmatch(r"\d{4}-\d{2}-\d{2}").all()
    assert [column for column in table if (table[column] == "").all()] == []


def test_provenance_names_this_machine():
    row = results.provenance(seed=3)
    assert tuple(row) == results.PROVENANCE
    assert row["seed"] == 3
    assert row["command"].startswith("python -m helpers.benchmark")
    assert "torch" in row["versions"]
    assert "cores" in row["device"]


def test_the_readme_shows_what_the_files_say():
    _, rest = (HOME / "README.md").read_text().split(readme.MARKS[0])
    assert rest.split(readme.MARKS[1])[0].strip() == readme.markdown().strip()


def test_the_page_of_all_networks_says_what_the_files_say(tmp_path):
    readme.write_networks(tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == (HOME / "data" / "results" / "README.md").read_text()


def test_a_page_without_its_marks_is_refused_and_the_rest_of_it_stays(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="path must be a page with the two results marks"):
        readme.write_readme(page)
    assert page.read_text() == "no marks"
    page.write_text("\n".join(["above", *readme.MARKS, "below"]))
    readme.write_readme(page)
    text = page.read_text()
    assert text.startswith("above\n" + readme.MARKS[0])
    assert text.endswith(readme.MARKS[1] + "\nbelow")
    assert re.search(r"\| pruned, 95% zeros +\|", text)
