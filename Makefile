# make demo: segment the built-in scan from a few slices, beside other methods. make test: the tests; make acceptance:
# also those that are slow. make mutate: puts small faults into the core modules and prints those that no test notices.
# make package: source distribution and wheel in dist. make docs: the documentation, in build/docs/index.html.
# Each makes its own virtual environment in .venv first; PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := data/demo

.PHONY: demo test acceptance mutate docs lint package clean

$(VENV)/installed: requirements.txt setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "sparse3dunet needs Python 3.10 or newer, this is %s; choose another: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	@echo "Setting up $(VENV), once; the downloads take a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

demo: $(VENV)/installed
	@echo "1/3  The built-in scan and its annotation: 3 slices per axis, 8.5 % of the voxels"
	$(BIN)/python -W ignore benchmarks/densify.py --write-demo $(DEMO)
	@echo "2/3  Segment all of it: a preview in seconds, the result in two minutes"
	$(BIN)/sparse3dunet densify $(DEMO)/scan.nii.gz $(DEMO)/annotation.nii.gz -o $(DEMO)/out --minutes 2 --restart --class-names 'background,gray matter,white matter'
	@echo "3/3  Compare with freely available methods given the same slices, by the dense label that none of them saw"
	$(BIN)/python -W ignore benchmarks/densify.py --demo $(DEMO)/out
	@echo "Look at $(DEMO)/out/report.html; the segmentation is $(DEMO)/out/scan_seg.nii.gz"

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "not slow" tests

acceptance: test
	$(BIN)/python -m pytest -m slow tests

mutate: $(VENV)/installed
	PYTHONPATH=pipeline OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.tools.mutate

$(VENV)/docs: docs/requirements.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

docs: $(VENV)/docs
	$(BIN)/python docs/tables.py --check
	PYTHONPATH=pipeline $(BIN)/python -W ignore -m sphinx --fail-on-warning --keep-going --quiet -c docs . build/docs
	@echo "build/docs/index.html"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=pipeline $(BIN)/lint-imports --no-cache

# With PROJECT_URL, the address of the repository, the README's links and pictures work where the package is published
package: $(VENV)/installed
	rm -rf dist
	PROJECT_URL=$(PROJECT_URL) $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache bundle/models bundle/eval data/mni152 data/demo
