"""kill -9 at random moments and in the middle of a write: nothing half-written, and a restart ends with the same bits."""

import csv
import hashlib
import json
import os
import random
import shutil

import pytest

from helpers import files, models

if os.name == "nt":
    pytest.skip("kill -9 and fork servers are of Linux and macOS", allow_module_level=True)

from tests.faults import children
from tests.faults.children import Child, kept


def check_checkpoint(folder, whole):
    for path in folder.glob("*.safetensors"):
        metadata, tensors = files.read_safetensors(path)
        assert metadata["sha256"] == files.digest(tensors, metadata["record"])


def check_benchmark(folder, whole):
    for path in kept(folder, "*.safetensors"):
        metadata, tensors = files.read_safetensors(path)
        if "record" in metadata:
            assert metadata["sha256"] == files.digest(tensors, metadata["record"])
        else:
            models.load(path)
    for path in (folder / "results").glob("*.csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["network"] for row in rows] == ["small"]
        assert all(None not in row and None not in row.values() and row["versions"] for row in rows)


def check_export(folder, whole):
    for path in folder.glob("*.onnx"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == whole[path.name]


@pytest.mark.parametrize(
    ("job", "check", "times"),
    [
        (children.train, check_checkpoint, 20),
        (children.measure, check_benchmark, 20),
        (children.convert, check_export, 6),  # leaves nothing to go on from
    ],
)
def test_killed_again_and_again_it_ends_with_the_same_bits(job, check, times, tmp_path):
    whole, seconds = Child(job, tmp_path / "whole").finish()
    again, more = Child(job, tmp_path / "again").finish()  # one of the two may have been slow
    assert whole == again
    seconds = min(seconds, more)
    moments, kills, folder = random.Random(0), 0, tmp_path / "killed"
    while kills < times:
        if Child(job, folder).kill_after(moments.uniform(0, seconds)):
            kills += 1
            check(folder, whole)
        else:  # it was done before: what it made must be right, and the next one begins anew
            assert Child(job, folder).finish()[0] == whole
            shutil.rmtree(folder)
    assert Child(job, folder).finish()[0] == whole
    assert {path.relative_to(folder) for path in kept(folder, "*")} == {
        path.relative_to(tmp_path / "whole") for path in kept(tmp_path / "whole", "*")
    }


@pytest.mark.parametrize("moment", [0, 1, 5_000, 150_000, "flush", "rename"])
def test_fit_killed_in_its_second_checkpoint_still_has_the_first(moment, tmp_path):
    whole, _ = Child(children.train, tmp_path / "whole").finish()
    said, _ = Child(children.train, tmp_path, children.DieInTheSecondWrite(moment)).finish()
    assert said is None
    metadata, _ = files.read_safetensors(tmp_path / "run [1].safetensors")
    assert len(json.loads(metadata["record"])["history"]) == 1
    assert Child(children.train, tmp_path).finish()[0] == whole
    assert not list(tmp_path.glob(".*.part"))


MOMENTS = [(writer, moment) for writer in ("save", "append") for moment in (0, 1, 3_000, "flush", "rename")]


@pytest.mark.parametrize(("writer", "moment"), [*MOMENTS, ("export", 3_000), ("export", "rename")])
def test_killed_while_writing_the_old_file_stays(writer, moment, tmp_path):
    child = Child(children.rewrite, tmp_path, writer, moment)
    assert child.hear() == "ready"
    first = child.hear()
    assert child.hear() is None  # it died in the second write
    child.process.join()
    (file,) = [path for path in tmp_path.glob("*.*") if path.name[0] != "."]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == first
    assert list(tmp_path.glob(".*.part"))
    assert Child(children.rewrite, tmp_path, writer, None).finish()[0] is not None
    assert not list(tmp_path.glob(".*.part"))


def test_of_four_writers_none_loses_a_row_and_a_kill_tears_none(tmp_path):
    moments, rows = random.Random(0), 40
    writers = {name: Child(children.append, tmp_path, name, rows) for name in "abc"}
    killed = [Child(children.append, tmp_path, f"killed {number}", 10_000) for number in range(5)]
    for child in killed:
        assert child.kill_after(moments.uniform(0.05, 0.3))
    for child in writers.values():
        assert child.finish()[0] == "written"
    with (tmp_path / "speed.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for row in table:
        assert set(row.values()) == {row["what"], row["unit"], f'a {row["what"]} of, "several"\nlines'}
    for name in {row["what"] for row in table}:
        numbers = [int(row["unit"]) for row in table if row["what"] == name]
        assert numbers == list(range(rows if name in writers else len(numbers))), name
    assert set(writers) < {row["what"] for row in table}
