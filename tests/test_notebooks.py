"""What nbval does not see: every notebook has the same shape, enough checked cells, working links and printed numbers."""

import ast
import inspect
import itertools
import re

import matplotlib.pyplot as plt
import nbformat
import pytest
import seaborn as sns

from helpers import plotting, report, widgets
from helpers.data import HOME
from helpers.maintain.series import notebooks

PATHS = notebooks()
LESSONS = [path for path in PATHS if path.parent.name == "notebooks"]

PLAIN = re.compile(r"\d{1,3}(?:,\d{3})+|\d+\.\d+|\d+")
UNIT = r"(?:\s|-)?(?:%|points?\b|times\b|bits?\b|[kM]B\b|ms\b|m?J\b|dollars\b|pictures\b|parameters\b|weights\b|MACs\b|of \d)"
MEASURED = re.compile(
    rf"(?<![\w.,/^-])(?:(?:\d{{1,3}}(?:,\d{{3}})+|\d+\.\d+|\d+)(?={UNIT})|(?:\d{{1,3}}(?:,\d{{3}})+|\d+\.\d+)(?![\w,.]*\d))"
)
GIVEN = {  # numbers that are not measured here: facts about data sets, numbers of a worked example or a question, conventions
    "00_start_here": ("0.005", "0.05"),
    "01_distillation": (),
    "02_pruning": ("0.875",),
    "03_low_rank": (),
    "04_combined": (),
    "05_deployment": ("0.00001", "0.01"),
    "06_case_studies": (),
    "07_your_own_network": (),
}


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def leads_somewhere(target, page):
    """Whether a link of ``page`` is an address, or a file that is there, with a heading of the name behind its #."""
    if target.startswith("https://"):
        return True
    file, _, anchor = target.partition("#")
    other = (page.parent / file) if file else page
    if not anchor or not other.exists():
        return other.exists()
    headings = re.findall(r"^#+ (.+)$", other.read_text("utf-8"), re.MULTILINE)
    return anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def prints(cell):
    return any(
        output.get("name") == "stdout" or "text/plain" in output.get("data", {}) for output in cell.outputs
    )


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
                for target in re.findall(r"\]\(([^)]+)\)", cell.source):
                    assert leads_somewhere(target, path), target


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
class TestEveryLesson:
    def test_opens_with_goals_and_closes_with_what_was_learned(self, path):
        text = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
        for heading in ("**In this notebook you will**", "**You need**"):
            assert heading in text[0]
        for heading in (
            "## Exercises",
            "## What you learned",
            "**Limits.**",
            "**References.**",
            "solutions/",
        ):
            assert heading in text[-1]

    def test_was_executed_on_cifar10(self, path):
        assert "cifar10: 45,000 training" in str(code(path)[2].outputs)

    def test_every_number_in_the_prose_is_printed_or_computed(self, path):
        """A number with a decimal, a thousands' comma or a unit behind it stands in some cell's output or code, or it is in GIVEN."""
        cells = read(path).cells
        shown = "".join(cell.source for cell in cells if cell.cell_type == "code")
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            shown += output.get("text", "") + output.get("data", {}).get("text/plain", "")
        known = {number.replace(",", "") for number in PLAIN.findall(shown)} | {
            number.replace(",", "") for number in GIVEN[path.stem]
        }
        missing = []
        for cell in cells:
            if cell.cell_type == "markdown":
                prose = re.split(r"\*\*References", re.sub(r"\*\*Time and hardware.*", "", cell.source))[0]
                prose = re.sub(
                    r"\$\$.*?\$\$|\$[^$\n]*\$|```.*?```|`[^`]*`|\]\([^)]*\)", " ", prose, flags=re.DOTALL
                )
                missing += [
                    match[0] for match in MEASURED.finditer(prose) if match[0].replace(",", "") not in known
                ]
        assert missing == []

    def test_says_how_long_it_takes_and_on_what_and_where_terms_are(self, path):
        head = read(path).cells[0].source
        found = re.search(
            r"\*\*Time and hardware\*\*: about (\d+) minutes to read, (under|about) (\d+) minutes? to run on two CPU cores; no GPU\.",
            head,
        )
        assert found
        assert "[glossary](GLOSSARY.md)" in head
        readme = (HOME / "README.md").read_text()
        row = next(
            line
            for line in readme.splitlines()
            if line.startswith("| [") and f"(notebooks/{path.name})" in line
        )
        assert row.endswith(f"| {found[1]} min | {found[2]} {found[3]} min |")

    def test_figures_are_described_for_whoever_cannot_see_them(self, path):
        for cell in code(path):
            if any("image/png" in output.get("data", {}) for output in cell.outputs):
                assert len(cell.metadata.get("alt", "")) > 40, cell.source

    def test_the_slider_starts_where_the_figure_above_it_stands(self, path):
        """On GitHub no slider runs, and the figure is all there is."""
        calls = [
            node
            for cell in code(path)
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.Call)
        ]
        found = {}
        for call in calls:
            name = getattr(call.func, "attr", "")
            if re.fullmatch(r"(temperature|sparsity|energy|bits|budget)_(figure|slider)", name):
                signature = inspect.signature(getattr(widgets, name, None) or getattr(report, name))
                bound = signature.bind(*call.args, **{one.arg: one.value for one in call.keywords})
                kind, _, what = name.partition("_")
                if "slider" in found.get(kind, {}):  # a figure further down, of other numbers
                    continue
                given = bound.arguments.get(kind if what == "figure" else "start")
                default = signature.parameters.get("start")
                found.setdefault(kind, {})[what] = (
                    ast.literal_eval(given) if given is not None else default.default
                )
        for values in found.values():
            assert values["figure"] == values["slider"]
        assert len(found) == (1 if path.stem[:2] in ("01", "02", "03", "04", "07") else 0)


def test_colours_tell_apart_for_the_colour_blind_and_are_chosen_in_one_place():
    assert sns.color_palette("colorblind") == plotting.COLORS
    for path in PATHS:
        assert not re.search(r"color=|cmap=|palette", "".join(cell.source for cell in code(path)))
    plotting.theme()
    assert plt.rcParams["figure.facecolor"] == "white"  # also in a dark theme


def test_every_lesson_leads_to_the_next():
    for path, following in itertools.pairwise(LESSONS):
        assert f"]({following.name})" in read(path).cells[-1].source


def test_the_readme_names_every_notebook_and_only_files_that_exist():
    readme = (HOME / "README.md").read_text()
    for path in LESSONS:
        assert f"(notebooks/{path.name})" in readme
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        assert leads_somewhere(target, HOME / "README.md"), target


def test_nothing_tracked_is_a_picture_of_cifar10_or_large():
    import subprocess

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git checkout: clone the repository to check what it tracks")
    files = [HOME / name for name in listed.stdout.split("\0") if name]
    sizes = {path: path.stat().st_size for path in files if path.is_file()}
    assert not [path for path in files if "data_batch" in path.name or "test_batch" in path.name]
    assert sum(sizes.values()) < 60_000_000
