# Every target sets itself up: the environment in .venv, with the tested versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
BARE := $(VENV)/.bare
READY := $(VENV)/.ready
KERNEL := $(wildcard belay_cli/engine/kernel/*.[ch])

.DEFAULT_GOAL := help
.PHONY: help demo test sanitize crash fuzz coverage check format docs transcripts bench evidence clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(BARE)  ## average the sample run, compare the averages on held-out images; installs belay alone
	$(BIN)/python sample_checkpoints/demo.py

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest

# Python's own allocator would hide what is read beyond a small block; leaks are the interpreter's.
SANITIZED := build/sanitize/_native.so
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

sanitize: $(READY)  ## the kernel and its tests with the sanitizers of the C compiler
	mkdir -p $(dir $(SANITIZED))
	$(CC) -O1 -g -shared -fPIC -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers $(SANITIZE) \
	    $$($(BIN)/python -c 'import sysconfig; print("-I" + sysconfig.get_path("include"))') \
	    $(filter %.c,$(KERNEL)) -o $(SANITIZED)
	PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" \
	    $(BIN)/python tests/engine/sanitized.py $(SANITIZED) --numprocesses 0 tests/engine/test_arithmetic.py

crash: $(READY)  ## break every system call of a run in every way, and look at what is left; Linux, some 40 minutes
	$(BIN)/python -m tests.crash --processes 20 --moments 50
	$(BIN)/python -m tests.crash.ranks 20

fuzz: $(READY)  ## a hundred thousand mutations for each reader; some hours
	$(BIN)/python -m tests.fuzz

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
