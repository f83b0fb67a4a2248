"""What nbval does not see: every notebook has the same shape, enough checked cells, working links and printed numbers."""

import re
from pathlib import Path

import nbformat
import pytest

from helpers.data import HOME
from helpers.series import notebooks

PATHS = notebooks()
LESSONS = [path for path in PATHS if path.parent.name == "notebooks"]


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prints(cell):
    return any(output.get("name") == "stdout" or "text/plain" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}/{p.stem}")
class TestEveryNotebook:
    def test_begins_alike(self, path):
        cells = read(path).cells
        assert cells[0].cell_type == "markdown"
        assert cells[0].source.startswith("# ")
        first, fetch, setup = code(path)[:3]
        assert (tags(first), tags(fetch)) == (["parameters"], ["colab"])
        assert first.source.startswith('budget = "quick"')
        assert "lesson = open_lesson(budget)" in setup.source
        assert "sys.path" not in "".join(cell.source for cell in cells if tags(cell) != ["colab"])

    def test_is_executed_in_order_without_errors_and_small(self, path):
        assert path.stat().st_size < 1_500_000
        cells = [cell for cell in code(path) if cell.source.strip()]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
        assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)

    def test_a_third_of_the_printing_cells_is_checked(self, path):
        printing = [cell for cell in code(path) if prints(cell) and "image/png" not in str(cell.outputs)]
        checked = [cell for cell in printing if "nbval-check-output" in tags(cell)]
        assert len(checked) >= len(printing) / 3

    def test_cells_are_short_and_results_are_not_written_into_them(self, path):
        for cell in code(path):
            assert len(cell.source.splitlines()) <= 20

    def test_links_lead_somewhere(self, path):
        for cell in read(path).cells:
            if cell.cell_type == "markdown":
                for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
                    assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
class TestEveryLesson:
    def test_opens_with_goals_and_closes_with_what_was_learned(self, path):
        text = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
        for heading in ("**In this notebook you will**", "**You need**"):
            assert heading in text[0]
        for heading in ("## Exercises", "## What you learned", "**Limits.**", "**References.**", "solutions/"):
            assert heading in text[-1]

    def test_was_executed_on_cifar10(self, path):
        assert "cifar10: 45,000 training" in str(code(path)[2].outputs)

    def test_every_measured_number_in_the_prose_is_printed(self, path):
        """Percentages, points and factors with a decimal must stand in some cell's output."""
        notebook = read(path)
        printed = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
        prose = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        prose = re.sub(r"\$.*?\$", "", prose, flags=re.DOTALL)  # formulas are not results
        for number in re.findall(r"\d+\.\d+(?=%| points| times| bits|x )", prose):
            assert number in printed, number


def test_the_readme_names_every_notebook_and_only_files_that_exist():
    readme = (HOME / "README.md").read_text()
    for path in LESSONS:
        assert f"(notebooks/{path.name})" in readme
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert target.startswith("https://") or (HOME / target).exists(), target


def test_nothing_tracked_is_a_picture_of_cifar10_or_large():
    import subprocess

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git checkout: clone the repository to check what it tracks")
    files = [HOME / name for name in listed.stdout.split("\0") if name]
    sizes = {path: path.stat().st_size for path in files if path.is_file()}
    assert not [path for path in files if "data_batch" in path.name or "test_batch" in path.name]
    assert sum(sizes.values()) < 60_000_000


def test_no_pickle_is_read():
    for path in (HOME / "helpers").glob("*.py"):
        assert not re.search(r"torch\.load|pickle|joblib", path.read_text().replace("no pickle", "")), Path(path).name
