# The two commands that matter: make demo, make test.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow lint bench clean

demo: $(READY)
	$(BIN)/pocketvit demo

# Two workers: a test alone keeps only one core busy.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/runtimes.py

clean:
	rm -rf $(VENV) runs exported .mypy_cache .ruff_cache .pytest_cache

# torch first and pinned: a looser range may pull gigabytes of CUDA libraries. torchvision without its dependencies:
# its wheel names a CUDA build of torch, and pocketvit needs only its image transforms (see torchvision_repair.py).
$(READY): pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "pocketvit needs $(PYTHON); set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@
