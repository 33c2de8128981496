# Every target sets itself up: the environment in .venv, with the tested versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
BARE := $(VENV)/.bare
READY := $(VENV)/.ready
KERNEL := $(wildcard belay_cli/engine/kernel/*.[ch])

.DEFAULT_GOAL := help
.PHONY: help demo test coverage check format docs transcripts bench evidence clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(BARE)  ## average the sample run, compare the averages on held-out images; installs belay alone
	$(BIN)/python sample_checkpoints/demo.py

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest

coverage: $(READY)  ## the suite, and which lines and branches it does not reach
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the docs site, into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

transcripts: $(READY)  ## write what their commands print into README.md and docs/
	$(BIN)/python docs/transcripts.py

bench: $(READY)  ## belay, the hand-written loop and the floor, in turn; takes 8 GB of disk
	$(BIN)/python benchmarks/bench.py

evidence: $(READY)  ## train, compare and draw what docs/evidence.md says; some 40 minutes
	$(BIN)/python benchmarks/evidence

$(BARE): pyproject.toml constraints.txt $(KERNEL)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $(BARE)

# Of timm the tests need its EMA, which needs torch alone; the torchvision that timm asks for has to fit how torch was
# built.
$(READY): pyproject.toml constraints.txt $(KERNEL)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[dev,docs,interop]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps timm
	touch $(BARE) $(READY)

clean:  ## remove the environment and all that was built
	rm -rf $(VENV) build dist *.egg-info belay_cli/engine/kernel/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
