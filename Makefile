# make demo: train, score and predict on the built-in real data. make test: all tests.
# Each makes its own virtual environment in .venv first; PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -W ignore -m monai.bundle run

.PHONY: demo test lint clean

$(VENV)/installed: requirements.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "sparse3dunet needs Python 3.10 or newer, this is %s; choose another: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	@echo "Setting up $(VENV), once; the downloads take a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

demo: $(VENV)/installed
	@echo "1/4  Learn from 3 annotated slices an axis of one volume (data/mni152), about 3 minutes on two cores"
	$(RUN) training --config_file bundle/configs/train.yaml
	@echo "2/4  Score it against the dense label, which training never saw"
	$(RUN) evaluating --config_file "['bundle/configs/train.yaml','bundle/configs/evaluate.yaml']"
	@echo "3/4  Segment the whole volume"
	$(RUN) inference --config_file bundle/configs/inference.yaml --dataset_dir data/mni152/imagesTr
	@echo "4/4  Compare with the random walker, from the same slices"
	$(BIN)/python -W ignore benchmarks/mni152.py bundle/eval/predictions/mni152_seg.nii.gz
	@echo "Look at bundle/eval/pictures/mni152.png; the segmentation is bundle/eval/predictions/mni152_seg.nii.gz"

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache bundle/models bundle/eval data/mni152
