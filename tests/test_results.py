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
        assert (table["correct"].astype(int) <= table["total"].astype(int)).all()


def test_provenance_names_this_machine():
    row = results.provenance(seed=3)
    assert row["seed"] == "3"
    assert row["command"].startswith("python -m helpers.benchmark")
    assert "torch" in row["versions"]
    assert "cores" in row["device"]
