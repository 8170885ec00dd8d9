# Verbs: demo, test, test-full, lint, bench, binary, install. Each sets up what it needs on a Debian 12 machine.
# demo FIRMWARE=1: a whole Debian disk that a firmware boots, with a cloud-init seed.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES = packaging/debian-packages.sh
STAMP := $(VENV)/.built
NATIVE := $(shell find vmm/_native -name '*.py[xd]') setup.py pyproject.toml

# The interpreter whose static library the binary gets.
STATIC_PYTHON ?= /usr/bin/python3.11
BINARY := dist/vllmd-hypervisor

.PHONY: demo test test-full lint bench build binary clean

build: $(STAMP)

$(STAMP): $(NATIVE)
	@$(PACKAGES)
	@test -x $(BIN)/python || { echo "making the virtual environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing Python packages and building the native modules (about a minute)"
	@$(BIN)/python -m pip --quiet --disable-pip-version-check install --editable '.[dev]'
	@touch $@

binary: $(BINARY)

$(BINARY): $(STAMP) $(shell find vmm devices -name '*.py') $(shell find packaging/binary -name "*.[pc]*") packaging/commit.py
	@$(PACKAGES) binary
	@echo "building the static executable (about a minute)"
	@$(STATIC_PYTHON) -I packaging/binary/build.py --output $@ \
	    --elftools "$$($(BIN)/python -c 'import elftools; print(elftools.__path__[0])')"

demo: build
	@$(PACKAGES) demo $(if $(FIRMWARE),firmware)
	@$(BIN)/python -m tests.lab.demo $(if $(FIRMWARE),firmware)

test: build binary
	@$(PACKAGES) test
	VLLMD_TEST_KVM=$${VLLMD_TEST_KVM-1} VLLMD_TEST_LAB=$${VLLMD_TEST_LAB-1} \
	    $(BIN)/python -m pytest -n 2 --dist loadscope --durations=10 $(PYTEST_ARGS)

test-full: build binary
	@$(PACKAGES) test
	VLLMD_TEST_FULL=1 VLLMD_TEST_KVM=1 VLLMD_TEST_LAB=1 $(BIN)/python -m pytest -n 2 --dist loadscope --durations=20 $(PYTEST_ARGS)

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cython-lint vmm/_native
	$(BIN)/python -m pytest -q tests/style

bench: build
	@$(PACKAGES) test
	$(BIN)/python -m benchmarks

clean:
	rm -rf build dist *.egg-info $(STAMP)
	find vmm -name '*.so' -delete
