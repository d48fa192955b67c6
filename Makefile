# make setup        create .venv with pinned versions of everything; does nothing if it is up to date
# make demo         fine-tune a small model on a new voice, offline, and judge the result
# make test         check style, types and import directions, and run the tests
# make lint         only check style, types and import directions
# make format       format the code, and fix what ruff can fix
# make test-boson   test the guard and the loss on Boson's own model, in .venv-boson with its older libraries
# make test-quantization   test QLoRA and optimizers of 8 bits, with bitsandbytes in build/bitsandbytes
# make test-newest  run a part of the tests with the newest versions that pyproject.toml allows; says what is newer
# make test-guard-versions   test the guard with transformers from 4.46 to the newest; VERSIONS=newest: only with that
# make test-guard-foreign    compare trainers of TRL and others with and without the guard, in .venv-foreign
# make torture      disturb the commands with 30 faults drawn at random
# make readme       run the README's commands and code, from wheels, with the newest dependencies
# make real-size    follow the README with random weights in the layout of the released checkpoint, but small
# make docs         build the documentation site in build/site, offline
# make dist         build the source distributions and wheels of the three packages in dist, and check them
# make constraints  resolve all dependencies again and rewrite constraints.txt
# make clean        remove environments, builds and caches

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BOSON  := .venv-boson
FOREIGN := .venv-foreign
BITSANDBYTES := build/bitsandbytes
DEMO   ?=
VERSIONS ?=
PACKAGES := packages/label-guard packages/higgs-trainer-demo
EXTRAS := demo,dev,docs,evaluate-multilingual,numbers

.PHONY: setup demo test test-boson test-quantization test-guard-foreign test-guard-versions test-newest torture readme real-size docs dist lint format constraints clean

setup: $(STAMP)

# torch is installed first and alone, because a resolver that installs it with the rest may choose the newest CUDA
# build, which is several GB. The packages are built without isolation, so that the build tools are pinned as well.
$(STAMP): pyproject.toml $(addsuffix /pyproject.toml,$(PACKAGES)) constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make setup needs Python 3.11 or newer: make PYTHON=python3.11 setup")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt hatchling hatch-fancy-pypi-readme editables
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt --no-build-isolation \
	  $(addprefix -e ,$(PACKAGES)) -e '.[$(EXTRAS)]'
	@touch $@

demo: setup
	$(BIN)/higgs-trainer demo $(DEMO)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Always two workers with one thread each, so that results do not depend on the number of cores.
test: lint
	$(BIN)/pytest -n 2 --cov --cov-report=term

# Install only what Boson's model and collator import, and what builds label-guard.
$(BOSON)/.installed: constraints-boson.txt
	test -x $(BOSON)/bin/python || $(PYTHON) -m venv $(BOSON)
	$(BOSON)/bin/pip install --disable-pip-version-check torch==2.13.0
	$(BOSON)/bin/pip install --disable-pip-version-check -c constraints-boson.txt \
	  transformers==4.46.3 peft==0.13.2 accelerate==1.1.1 dacite librosa loguru pandas hypothesis pytest pytest-xdist \
	  hatchling hatch-fancy-pypi-readme rich xxhash
	$(BOSON)/bin/pip install --disable-pip-version-check --no-deps boson_multimodal==0.1.1
	@touch $@

# label-guard is installed as its users install it. higgs_trainer is used from its source folder: it requires newer
# libraries than Boson supports, but its loss and its trainer work with these.
test-boson: $(BOSON)/.installed
	$(BOSON)/bin/pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --force-reinstall \
	  ./packages/label-guard
	PYTHONPATH=src $(BOSON)/bin/python -m pytest -n 2 tests/boson packages/label-guard/tests

# bitsandbytes needs nothing that .venv lacks. It is kept apart, because PEFT imports it wherever it finds it.
$(BITSANDBYTES)/.installed: setup
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --upgrade --target $(BITSANDBYTES) bitsandbytes==0.50.2
	@touch $@

test-quantization: $(BITSANDBYTES)/.installed
	PYTHONPATH=$(BITSANDBYTES) $(BIN)/python -m pytest -n 2 tests/quantization

# `scripts/torture.py --seed S --minutes 60` draws other faults.
$(FOREIGN)/.installed: constraints-foreign.txt
	test -x $(FOREIGN)/bin/python || $(PYTHON) -m venv $(FOREIGN)
	$(FOREIGN)/bin/pip install --disable-pip-version-check torch==2.13.0
	$(FOREIGN)/bin/pip install --disable-pip-version-check -c constraints-foreign.txt \
	  torch==2.13.0 accelerate datasets hypothesis peft pytest pytest-xdist sentence-transformers transformers trl
	@touch $@

# The table of the results is written by: .venv-foreign/bin/python packages/label-guard/tests/foreign/table.py
test-guard-foreign: $(FOREIGN)/.installed
	PYTHONPATH=packages/label-guard/src $(FOREIGN)/bin/python -m pytest -n 2 packages/label-guard/tests/foreign

torture: setup
	$(BIN)/python scripts/torture.py --seed 1 --cases 30

# `scripts/real_size.sh --size released` does the same with the released size: docs/real_size.md.
real-size: setup
	rm -rf build/real_size_small
	scripts/real_size.sh --size small

# In a new environment each time, which holds nothing that this project does not ask for.
readme: dist
	$(BIN)/python scripts/follow_readme.py --wheels dist -o build/readme

test-guard-versions: setup
	$(BIN)/python scripts/library_versions.py guard $(VERSIONS)

test-newest: setup
	$(BIN)/python scripts/library_versions.py newest

# A warning is an error. To read the site while you write: .venv/bin/mkdocs serve
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The wheels are built from the source distributions, so these hold all that a wheel needs.
dist: setup
	rm -rf dist
	for package in $(PACKAGES) .; do (cd $$package && $(CURDIR)/$(BIN)/hatchling build -t sdist -d $(CURDIR)/dist) || exit 1; done
	$(BIN)/pip wheel --disable-pip-version-check --quiet --no-deps --no-build-isolation -w dist dist/*.tar.gz
	$(BIN)/twine check --strict dist/*

# Compare the new constraints.txt with the old one, then run `make test` and `make demo`.
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install torch==2.13.0
	build/constraints/bin/pip install $(PACKAGES:%=./%) '.[$(EXTRAS)]'
	(sed '/^[^#]/,$$d' constraints.txt; \
	 build/constraints/bin/pip freeze --exclude higgs-trainer --exclude label-guard --exclude higgs-trainer-demo \
	 | sed 's/^torch==.*/torch==2.13.0/') > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) $(BOSON) $(FOREIGN) build dist $(PACKAGES:%=%/build) $(PACKAGES:%=%/dist) \
	  .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
