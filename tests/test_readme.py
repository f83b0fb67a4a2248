"""The README's code runs as it stands, its links lead somewhere, and the glossary is in order."""

import re
import subprocess

import pytest

from helpers import models
from helpers.benchmark import page, recipes, results
from helpers.benchmark.__main__ import MORE, parser
from helpers.benchmark.recipes import NETWORKS
from helpers.data import HOME
from helpers.distillation import DistillationLoss
from helpers.evaluation import paired
from helpers.low_rank import factorize
from helpers.maintain.series import notebooks
from helpers.pruning import GradualPruner, PolynomialSchedule
from helpers.training import fit

README = (HOME / "README.md").read_text()
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import" in block]


@pytest.mark.parametrize(
    "block", BLOCKS, ids=[re.search(r"# (.+)|import (\w+)", block).group(0)[:40] for block in BLOCKS]
)
def test_every_code_block_that_imports_what_it_uses_runs(block, tmp_path, monkeypatch):
    """With no name but its own, as in a fresh interpreter, whose start is most of the time it would take."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NNC_DATA", "digits")
    monkeypatch.setattr(recipes, "NETWORKS", dict(NETWORKS))  # a block adds to them
    exec(block, {"__name__": "__main__"})


def test_every_make_target_and_command_named_exists():
    makefile = (HOME / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    listed = parser().format_help()
    for name in re.findall(r"`python -m helpers\.benchmark (\w+)", README):
        assert name in listed or name in {*NETWORKS, "pruned99"}, name


def test_the_glossary_is_sorted_and_says_each_term_once():
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+ \| [0-9, ]+ \|$",
        (HOME / "notebooks" / "GLOSSARY.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) > 30
    keys = [re.sub(r"^2:4", "two four", row).lower() for row in rows]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_the_three_lines_that_carry_the_series_run(digits):
    block = next(
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import" not in block
    )
    small = {
        "data": digits,
        "fit": lambda model, data, epochs, **options: fit(model, data, epochs=1, batch_size=256, **options),
    }
    small |= {name: models.build("vgg11", width=0.05) for name in ("teacher", "student", "model")}
    used = {
        "DistillationLoss": DistillationLoss,
        "GradualPruner": GradualPruner,
        "PolynomialSchedule": PolynomialSchedule,
    }
    assert block.count("fit(") == 3
    exec(block, small | used | {"factorize": factorize})


def test_every_benchmark_command_is_one_that_its_parser_takes():
    commands = re.findall(r"(?:python|accelerate launch) -m helpers\.benchmark([^`\n]*)", README)
    commands += re.findall(r"`(--(?:data|engine)[^`]*)`", README)
    assert len(commands) >= 4
    for command in commands:
        chosen = parser().parse_args(command.split())
        assert set(chosen.names) <= {*NETWORKS, *MORE, "pruned99"}


def test_every_make_target_would_run():
    for target in set(re.findall(r"`make (\w+)", README)):
        done = subprocess.run(["make", "-n", target], cwd=HOME, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_every_figure_is_drawn_by_a_notebook():
    sources = "".join(path.read_text("utf-8") for path in notebooks())
    shown = re.findall(r"!\[([^\]]+)\]\(figures/(\w+)\.png\)", README)
    assert shown
    for described, name in shown:
        assert len(described) > 30
        assert f'\\"{name}\\")' in sources, name


def test_every_measured_number_outside_the_table_is_in_the_results():
    """Numbers inside the marks are written by helpers.benchmark.page, and compared in test_results."""
    outside = page.MARKS[0].join([README.split(page.MARKS[0])[0], README.split(page.MARKS[1])[1]])
    names = ["teacher", "zeros95_patient", "channels12", "spatial7_longer", "fast_convnet_taught"]
    names += [
        f"fast_convnet_2m_{step}"
        for step in ("taught", "zeros70", "thin_zeros75", "thinner_assisted", "alone")
    ]
    table = results.beside(names).set_index(["network", "format"])
    computed = {f"{table.loc[('teacher', 'onnx'), 'correct']:,.0f} of 10,000"}
    for name in names:
        row = table.loc[(name, "onnx int8")]
        smaller, faster = (
            f"{row[key]:.0f}" if row[key] >= 10 else f"{row[key]:.1f}"
            for key in ("times_smaller", "times_faster")
        )
        megabytes = row["zip_bytes"] / 1e6
        size = f"{megabytes:.1f}" if megabytes >= 10 else f"{megabytes:.2f}"
        counts = f"| {size} | {smaller} | {faster} | {row['correct']:,.0f} | {row['p_value']:.2g} |"
        how = "--measure " if name == "teacher" else ""
        computed.add(f"{smaller} times smaller, {faster} times faster")
        computed.add(f"{counts} `python -m helpers.benchmark {name} {how}--out FOLDER` |")
        file = NETWORKS[name].file
        assert file is None or (HOME / "data" / "checkpoints" / f"{file}.safetensors").exists(), name
    for text in computed:
        assert text in outside or "times smaller" in text, text
    whole = table.loc[("teacher", "onnx")]
    computed |= {f"{whole[column] / 1e6:.1f} MB" for column in ("bytes", "zip_bytes")}
    computed |= {"170 MB", "9 GB", "3 GB", "10,000 test pictures"}  # of other people's files
    best, ours = (results.row(name, "onnx int8") for name in ("baseline", "fast_convnet_2m_zeros70"))
    pair = paired(results.answers(ours), results.answers(best), results.labels())
    assert f"has {best['correct']:,} right in int8" in outside
    assert f"{-pair.points:.2f} points behind, p {pair.p_value:.2g}" in outside
    claims = re.findall(r"\d[\d,.]* (?:times \w+|of 10,000|MB|GB)", outside)
    assert claims
    for claim in claims:
        assert any(claim in text for text in computed), claim
