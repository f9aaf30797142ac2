# One verb a task. `make demo` and `make test` need python3 (3.11 or newer) with venv, gcc and make; nothing else.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.h vhostfast/core/*.pyx vhostfast/core/*.pxd)

.PHONY: build test test-peers demo clean

build: $(STAMP)

$(BIN)/python:
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(STAMP): $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

test: build
	$(BIN)/python -m pytest -q -m 'not peers'

test-peers: build
	$(BIN)/python -m pytest -q -m peers

demo: build
	$(BIN)/vhostfast demo

clean:
	rm -rf build dist $(VENV) vhostfast/core/*.so *.egg-info
