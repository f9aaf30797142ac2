# One verb a task. `make demo` and `make test` need python3 (3.11 or newer) with venv, gcc and make;
# nothing else. `make test-peers` needs QEMU and DPDK as well: scripts/install-peers.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.h csrc/driver/*.h vhostfast/core/*.pyx vhostfast/core/*.pxd)

.PHONY: build test test-peers soak fuzz bench instructions mutate demo wheel clean

build: $(STAMP)

$(BIN)/python:
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools Cython numpy

# Without isolation only what has changed is compiled again.
$(STAMP): $(BIN)/python $(SOURCES)
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --no-build-isolation -e '.[dev]'
	touch $@

test: build
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m 'not peers'

test-peers: build
	$(BIN)/python -m pytest -q -m peers

# Honest and hostile guests at once, for as long as you like: SOAK_MINUTES=60 make soak
SOAK_MINUTES ?= 10
soak: build
	$(BIN)/python tests/soak.py --minutes $(SOAK_MINUTES)

# Each step of the data path, and each part of the control plane: us a call (bench/subjects.py).
bench: build
	$(BIN)/python -m pytest -q bench --benchmark-only --benchmark-group-by=group --benchmark-sort=name \
		--benchmark-columns=min,median,iqr,rounds --benchmark-time-unit=us --benchmark-max-time=0.3

# Instructions a packet against those stored, by valgrind.
instructions: build
	$(BIN)/python bench/instructions.py

# What reads guest memory against any bytes, by clang: FUZZ_SECONDS of each of the eight targets (60),
# two at a time. An hour in all: FUZZ_SECONDS=900 make fuzz
fuzz: $(BIN)/python
	$(BIN)/python scripts/fuzz.py

# Whether a test fails for each call that marks, removed or displaced (docs/migration.md).
mutate: build
	$(BIN)/python scripts/mutate_marks.py

demo: build
	$(BIN)/vhostfast demo

wheel: build
	$(BIN)/python -m build

clean:
	rm -rf build dist $(VENV) vhostfast/core/*.so *.egg-info
