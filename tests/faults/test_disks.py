"""Full disks and folders that cannot be written: an error that names the file, at once, and what was there before still there."""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from matplotlib import pyplot

from helpers import files, lesson, models
from helpers.benchmark import page as readme
from helpers.benchmark import results
from helpers.data import load_data
from helpers.training import Callback, fit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="disks are filled and locked on Linux only")


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True
        ).returncode
    ):
        pytest.skip(
            "a small disk needs root and the right to mount: run the tests as root, outside a locked container"
        )
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder, leave=0):
    """Write until nothing fits, then free ``leave`` bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with (folder / "filler").open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, free)
        file.truncate(max(0, free - leave))


def lock(folder):
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)


def small():
    torch.manual_seed(0)
    return models.build("tiny_convnet", width=0.2)


class After(Callback):
    """Does something once an epoch is over."""

    def __init__(self, epoch, action):
        self.epoch, self.action = epoch, action

    def on_epoch(self, run):
        if run.epoch == self.epoch:
            self.action()
        return {}


@pytest.mark.parametrize("fault", ["full", "nearly full", "locked"])
def test_a_run_that_cannot_write_its_checkpoint_says_so_and_goes_on_from_the_last_good_one(fault, disk):
    data, path = load_data("digits", train_limit=256), disk / "runs" / "run.safetensors"
    options = {"epochs": 3, "batch_size": 64, "progress": False}
    whole = small()
    fit(whole, data, **options)
    break_ = {
        "full": lambda: fill(disk),
        "nearly full": lambda: fill(disk, 100_000),
        "locked": lambda: lock(disk),
    }[fault]
    reason = "Read-only file system" if fault == "locked" else "No space left on device"
    with pytest.raises(OSError, match=rf"run\.safetensors could not be written \(.*{reason}.*still there"):
        fit(small(), data, checkpoint=path, callbacks=[After(2, break_)], **options)
    assert [file.name for file in path.parent.iterdir()] == ["run.safetensors"]
    metadata, tensors = files.read_safetensors(path)
    assert metadata["sha256"] == files.digest(tensors, metadata["record"])
    del tensors
    if fault == "locked":
        with pytest.raises(
            OSError, match=r"run\.safetensors could not be written"
        ):  # before anything is trained
            fit(small(), data, checkpoint=path, callbacks=[After(1, pytest.fail)], **options)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    else:
        (disk / "filler").unlink()
    resumed = small()
    fit(resumed, data, checkpoint=path, callbacks=[After(1, pytest.fail)], **options)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


ROW = dict.fromkeys(results.SCHEMA["speed"], 1)


@pytest.mark.parametrize("fault", ["full", "nearly full", "locked"])
@pytest.mark.parametrize("writer", ["save", "append", "write_readme"])
def test_other_files_stay_as_they_were(writer, fault, disk):
    page = disk / "file.md"
    page.write_text("\n".join(("above", *readme.MARKS, "below" * 20_000)))
    write = {
        "save": lambda: models.save(small(), disk / "file.safetensors"),
        "append": lambda: results.append("speed", [ROW | {"what": "x" * 1_000} for _ in range(500)], disk),
        "write_readme": lambda: readme.write_readme(page),
    }[writer]
    write()
    page.write_text(page.read_text().replace(readme.MARKS[1], f"an older table\n{readme.MARKS[1]}"))
    before = {path.name: path.read_bytes() for path in disk.iterdir()}
    if fault == "locked":
        lock(disk)
    else:
        fill(disk, 0 if fault == "full" else 20_000)
    with pytest.raises(
        OSError,
        match="Read-only file system"
        if fault == "locked"
        else r"(file|speed)\..* could not be written \(.*No space left",
    ):
        write()
    (disk / "filler").unlink(missing_ok=True) if fault != "locked" else None
    assert {path.name: path.read_bytes() for path in disk.iterdir()} == before


def test_what_lies_there_already_is_not_written_again(disk, monkeypatch):
    """Figures, the README's table, the digits' teacher: a checkout that cannot be written has them, and serves."""
    page, digits = disk / "file.md", load_data("digits")
    lesson_ = lesson.Lesson("quick", replace(digits, name="cifar10"))
    page.write_text("\n".join(("above", *readme.MARKS, "below")))
    figure, _ = pyplot.subplots(figsize=(1, 1))
    monkeypatch.setenv("NNC_PUBLISH", str(disk))
    monkeypatch.setattr(lesson, "BUILD", disk)
    models.save(small(), disk / "vgg19_digits.safetensors")
    readme.write_readme(page)
    lesson_.publish(figure, "figure")
    before = {path.name: path.read_bytes() for path in disk.iterdir()}
    lock(disk)
    readme.write_readme(page)
    lesson_.publish(figure, "figure")
    lesson.Lesson("quick", digits).teacher()
    assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
    with pytest.raises(OSError, match=r"other\.png could not be written \(Read-only file system\)"):
        lesson_.publish(figure, "other")


def test_a_teacher_that_cannot_be_kept_is_still_there(disk, monkeypatch, capsys):
    monkeypatch.setattr(lesson, "BUILD", disk / "build")
    monkeypatch.setattr(lesson, "fit", lambda *_, **__: None)
    lock(disk)
    model = lesson.Lesson("quick", load_data("digits")).teacher()
    assert not model.training
    said = capsys.readouterr().out
    assert re.search(
        r"vgg19_digits\.safetensors could not be written \(Read-only .*Way out: let NNC_BUILD", said
    )


def test_an_export_that_finds_the_disk_full_leaves_nothing(disk):
    from helpers import export

    some = load_data("digits").validation.take(slice(0, 4))
    fill(disk, 50_000)
    with pytest.raises(OSError, match="No space left"):
        export.to_onnx(small(), disk / "file.onnx", some)
    assert [path.name for path in disk.iterdir()] == ["filler"]


AS_NOBODY = """
    import os, sys, torch
    from pathlib import Path
    from helpers import models
    from helpers.benchmark import results
    from helpers.data import load_data
    from helpers.training import fit
    model, data = models.build("tiny_convnet", width=0.2), load_data("digits", train_limit=256)
    os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
    folder = Path(sys.argv[1])
    for write in (
        lambda: models.save(model, folder / "file.safetensors"),
        lambda: models.save(model, folder / "deeper" / "file.safetensors"),
        lambda: fit(model, data, epochs=1, checkpoint=folder / "file.safetensors", progress=False),
        lambda: results.append("speed", [dict.fromkeys(results.SCHEMA["speed"], 1)], folder),
    ):
        try:
            write()
        except PermissionError as error:
            print(error)
"""


def test_a_folder_of_somebody_else_is_named_at_once(tmp_path):
    if os.geteuid():
        pytest.skip("another user's folder needs root to make one: run the tests as root")
    import pwd

    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    for above in (folder, *folder.parents):
        if (
            above.stat().st_uid == 0
            and not above.stat().st_mode & 0o001
            and above.is_relative_to(tmp_path.parent.parent)
        ):
            above.chmod(above.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AS_NOBODY), folder, str(pwd.getpwnam("nobody").pw_uid)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr[-2000:]
    assert all(str(folder) in line and "Permission denied" in line for line in lines)
    assert not list(folder.iterdir())


def test_a_parent_that_is_a_file_and_other_errors_in_the_block_are_told_apart(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"model\.safetensors could not be written"):
        models.save(small(), tmp_path / "file" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="elsewhere"), files.atomic_path(tmp_path / "target"):
        (tmp_path / "elsewhere").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_leftovers_of_the_dead_are_cleared_and_those_of_the_living_are_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".run [1].csv.{pid}.part").write_text("half")
    with files.atomic_path(tmp_path / "run [1].csv") as part:
        part.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"run [1].csv", f".run [1].csv.{os.getppid()}.part"}
