"""The README's code runs as it stands, its links lead somewhere, and the glossary is in order."""

import os
import re
import subprocess
import sys

import pytest

from helpers.data import HOME

README = (HOME / "README.md").read_text()
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import" in block]


@pytest.mark.parametrize("block", BLOCKS, ids=[re.search(r"# (.+)|import (\w+)", block).group(0)[:40] for block in BLOCKS])
def test_every_code_block_that_imports_what_it_uses_runs(block, tmp_path):
    environment = {**os.environ, "NNC_DATA": "digits", "PYTHONPATH": str(HOME)}
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_make_target_and_command_named_exists():
    makefile = (HOME / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    listed = subprocess.run(
        [sys.executable, "-m", "helpers.benchmark", "--help"], cwd=HOME, capture_output=True, text=True, timeout=120
    ).stdout
    for name in re.findall(r"`python -m helpers\.benchmark (\w+)", README):
        assert name in listed, name


def test_the_glossary_is_sorted_and_says_each_term_once():
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| [0-9, ]+ \|$", (HOME / "notebooks" / "GLOSSARY.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    keys = [re.sub(r"^2:4", "two four", row).lower() for row in rows]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
