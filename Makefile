# Everything runs from .venv, which `install` fills with the exact versions of constraints.txt.
PYTHON ?= python3
# Tests wait for processes half of their time, so three files at once suit two cores; the slow ones come first.
WORKERS ?= 3
BIN := .venv/bin

.PHONY: install demo test unit lint bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

demo: install
	$(BIN)/swapmeet demo --home .cache/swapmeet

test: install lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

unit: install
	$(BIN)/pytest -m 'not slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/serving/mixed_batch.py

clean:
	rm -rf .venv .cache dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
