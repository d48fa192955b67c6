# make setup   .venv with everything pinned; a second call installs nothing
# make demo    the main job on a laptop, offline: fine-tune, speak, judge
# make test    lint, format, types, import directions, tests
# make test-boson   the guard and the loss on Boson's own model, which needs older libraries: in an environment of its own
# make docs    the documentation site, in build/site; offline
# make clean   away with the environments and the caches

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BOSON  := .venv-boson
DEMO   ?=

.PHONY: setup demo test test-boson docs lint format constraints clean

setup: $(STAMP)

# torch first and alone: asked for together with the rest, a resolver may take its newest build for CUDA, several GB.
# The project itself last, without a build environment of its own, so that its build tools are pinned too.
$(STAMP): pyproject.toml packages/label-guard/pyproject.toml packages/higgs-trainer-demo/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make setup needs Python 3.11 or newer: make PYTHON=python3.11 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt --no-build-isolation \
	  -e packages/label-guard -e packages/higgs-trainer-demo -e '.[demo,dev,docs,evaluate,numbers]'
	@touch $@

demo: setup
	$(BIN)/higgs-trainer demo $(DEMO)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two workers with one thread each: as many as a small machine has, and every number the same on a large one.
test: lint
	$(BIN)/pytest -n 2 --cov --cov-report=term

# Only what Boson's model and collator import. This package comes from the source folder: it asks for newer libraries
# than Boson can bear, but its guard, loss and trainer work with these.
$(BOSON)/.installed: constraints-boson.txt
	test -x $(BOSON)/bin/python || $(PYTHON) -m venv $(BOSON)
	$(BOSON)/bin/pip install --disable-pip-version-check torch==2.13.0
	$(BOSON)/bin/pip install --disable-pip-version-check -c constraints-boson.txt \
	  transformers==4.46.3 peft==0.13.2 accelerate==1.1.1 dacite librosa loguru pandas hypothesis pytest pytest-xdist
	$(BOSON)/bin/pip install --disable-pip-version-check --no-deps boson_multimodal==0.1.1
	@touch $@

test-boson: $(BOSON)/.installed
	PYTHONPATH=src:packages/label-guard/src $(BOSON)/bin/python -m pytest -n 2 tests/boson packages/label-guard/tests

# A warning is an error. To read the site while you write: .venv/bin/mkdocs serve
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A new constraints.txt from a fresh resolve; look at the difference, then run `make test` and `make demo`.
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install torch==2.13.0
	build/constraints/bin/pip install '.[demo,dev,docs,evaluate,numbers]'
	(sed '/^[^#]/,$$d' constraints.txt; \
	 build/constraints/bin/pip freeze --exclude higgs-trainer | sed 's/^torch==.*/torch==2.13.0/') > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) $(BOSON) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage
