# make lab    open the series in JupyterLab
# make test   every test: lint, helpers, then the notebooks on digits and, where it is on disk, the lessons on CIFAR-10
# make run    execute the whole series without a browser, into build/notebooks/
# make notebooks   execute the series and write the outputs back into notebooks/ and figures/ (for maintainers)

PYTHON ?= python3
VENV ?= .venv
LAB_ARGS ?=
READY := $(VENV)/.ready
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
export JUPYTER_PREFER_ENV_PATH = 1

.PHONY: lab test run notebooks lint

lab: $(READY)
	$(VENV)/bin/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb $(LAB_ARGS)

test: $(READY)
	$(VENV)/bin/python -m helpers.maintain.series test

run: $(READY)
	$(VENV)/bin/python -m helpers.maintain.series run

notebooks: $(READY)
	$(VENV)/bin/python -m helpers.maintain.series write

lint: $(READY)
	$(VENV)/bin/ruff check helpers tests notebooks
	$(VENV)/bin/ruff format --check helpers tests

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))" || { echo "Python 3.10 to 3.13 is needed: make PYTHON=python3.12"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "venv is missing: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@# uv takes a minute where pip takes several; where it cannot be had, or does not reach the index, pip does it
	$(PIP) uv && $(VENV)/bin/python -m uv pip install --quiet --python $(VENV)/bin/python -r requirements.txt || $(PIP) -r requirements.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
