# Verbs: demo, test, test-full, lint, bench, binary, install. Each sets up what it needs on a Debian 12 machine.
# demo FIRMWARE=1: a whole Debian disk that a firmware boots, with a cloud-init seed.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES = packaging/debian-packages.sh
STAMP := $(VENV)/.built
NATIVE := $(shell find vmm/_native -name '*.py[xd]' -o -name '*.h') setup.py pyproject.toml

# The interpreter whose static library the binary gets.
STATIC_PYTHON ?= /usr/bin/python3.11
BINARY := dist/vllmd-hypervisor

# One file of all modules that `start` imports; without it, or with newer sources, a start is slower.
BUNDLED := $(VENV)/.bundled
MODULES := $(shell find vmm devices -name '*.py')

.PHONY: demo test test-full lint bench build binary install clean

build: $(STAMP) $(BUNDLED)

$(STAMP): $(NATIVE) packaging/bin/vllmd-hypervisor
	@$(PACKAGES)
	@test -x $(BIN)/python || { echo "making the virtual environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing Python packages and building the native modules (about a minute)"
	@$(BIN)/python -m pip --quiet --disable-pip-version-check install --editable '.[dev]'
	@touch $@

$(BUNDLED): $(STAMP) $(MODULES) packaging/bundle.py
	@$(BIN)/python packaging/bundle.py >/dev/null
	@touch $@

binary: $(BINARY)

$(BINARY): $(STAMP) $(MODULES) $(shell find packaging/binary -name "*.[pc]*") packaging/commit.py
	@$(PACKAGES) binary
	@echo "building the static executable (about a minute)"
	@$(STATIC_PYTHON) -I packaging/binary/build.py --output $@ \
	    --elftools "$$($(BIN)/python -c 'import elftools; print(elftools.__path__[0])')"

PREFIX ?= /usr/local
DESTDIR ?=
DOCUMENTS := dist/vllmd-hypervisor.8 dist/vllmd-hypervisor.bash

dist/vllmd-hypervisor.8: vmm/command/usage.py vmm/settings/config.py packaging/manual.py
	@mkdir -p dist
	$(PYTHON) packaging/manual.py man >$@

dist/vllmd-hypervisor.bash: vmm/command/usage.py packaging/manual.py
	@mkdir -p dist
	$(PYTHON) packaging/manual.py completion >$@

# The binary, the systemd units (with its path in them), the man page and the bash completion.
install: binary $(DOCUMENTS)
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/vllmd-hypervisor
	install -D -m 644 dist/vllmd-hypervisor.8 $(DESTDIR)$(PREFIX)/share/man/man8/vllmd-hypervisor.8
	install -D -m 644 dist/vllmd-hypervisor.bash \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions/vllmd-hypervisor
	packaging/install-units.sh "$(DESTDIR)" "$(PREFIX)"

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
	rm -rf build dist *.egg-info $(STAMP) $(BUNDLED) vmm/*.bundle
	find vmm -name '*.so' -delete
