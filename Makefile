# Verbs: demo, test, test-full, fuzz, sanitize, soak, lint, bench, docs, binary, wheel, install, uninstall, deb, sbom. Each sets up what it needs on a Debian 12 machine.
# demo FIRMWARE=1: a whole Debian disk that a firmware boots, with a cloud-init seed.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES = packaging/debian-packages.sh
STAMP := $(VENV)/.built
NATIVE := $(shell find vmm/_native -name '*.p[xy][xd]' -o -name '*.h') setup.py pyproject.toml

# The interpreter whose static library the binary gets.
STATIC_PYTHON ?= /usr/bin/python3.11
BINARY := dist/vllmd-hypervisor

# One file of all modules that `start` imports; without it, or with newer sources, a start is slower.
BUNDLED := $(VENV)/.bundled
MODULES := $(shell find vmm devices -name '*.py')

.PHONY: demo test test-full fuzz sanitize soak lint bench docs build binary wheel install uninstall deb sbom clean

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

$(BINARY): $(STAMP) $(MODULES) $(shell find packaging/binary -name "*.[pc]*") packaging/commit.py packaging/hardening.py packaging/parts.py
	@$(PACKAGES) binary
	@echo "building the static executable (about a minute)"
	@$(STATIC_PYTHON) -I packaging/binary/build.py --output $@ \
	    --elftools "$$($(BIN)/python -c 'import elftools; print(elftools.__path__[0])')"

PREFIX ?= /usr/local
DESTDIR ?=
DOCUMENTS := dist/vllmd-hypervisor.8 $(foreach shell,bash zsh fish,dist/vllmd-hypervisor.$(shell))
WRITERS := packaging/manual.py packaging/manual_text.py packaging/completions.py
TABLES := $(wildcard vmm/command/*.py vmm/settings/*.py vmm/seed/*.py) vmm/host/keys.py vmm/layout.py vmm/__init__.py

dist/vllmd-hypervisor.8: $(TABLES) $(WRITERS)
	@mkdir -p dist
	$(PYTHON) packaging/manual.py man >$@

dist/vllmd-hypervisor.%: $(TABLES) $(WRITERS)
	@mkdir -p dist
	$(PYTHON) packaging/manual.py $* >$@

# The binary, man page, completions, licence and documents, the systemd units (with the binary's
# path in them) and /etc/logrotate.d/vllmd-hypervisor. packaging/install.sh has the list.
install: binary $(DOCUMENTS)
	packaging/install.sh install "$(DESTDIR)" "$(PREFIX)"

# Removes the same files. Settings, images, logs and the user stay.
uninstall:
	packaging/install.sh uninstall "$(DESTDIR)" "$(PREFIX)"

# dist/vllmd-hypervisor_VERSION_amd64.deb, and what lintian says to it.
deb: binary $(DOCUMENTS)
	@$(PACKAGES) deb
	packaging/debian/build.sh
	lintian --fail-on error dist/vllmd-hypervisor_*.deb

# A wheel for pip whose command is this executable; `pip install .` makes one of its own.
wheel: binary
	rm -f dist/*.whl
	VLLMD_WHEEL_EXECUTABLE=$(abspath $(BINARY)) $(BIN)/python -m pip --quiet \
	    --disable-pip-version-check wheel --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

# What is inside executable and wheel, as CycloneDX: dist/*.cdx.json.
sbom: wheel
	for file in $(BINARY) dist/*.whl; do \
	    $(BIN)/python packaging/sbom.py $$file build/binary/parts.json $$file.cdx.json; done

demo: build
	@$(PACKAGES) demo $(if $(FIRMWARE),firmware)
	@$(BIN)/python -m tests.lab.demo $(if $(FIRMWARE),firmware)

# The order of modules is ours: the longest first.
WORKERS = -n 2 --dist loadscope --no-loadscope-reorder

test: build binary
	@$(PACKAGES) test
	VLLMD_TEST_KVM=$${VLLMD_TEST_KVM-1} VLLMD_TEST_LAB=$${VLLMD_TEST_LAB-1} \
	    $(BIN)/python -m pytest $(WORKERS) --durations=60 $(PYTEST_ARGS)

test-full: build binary
	@$(PACKAGES) test full
	VLLMD_TEST_FULL=1 VLLMD_TEST_KVM=1 VLLMD_TEST_LAB=1 \
	    $(BIN)/python -m pytest $(WORKERS) --durations=20 $(PYTEST_ARGS)

# A guest that reboots, writes, verifies and talks for HOURS: memory, descriptors and threads flat.
HOURS ?= 6
soak: build
	mkdir -p build
	nice -n 10 $(BIN)/python -m tests.support.soak --hours $(HOURS) --samples build/soak.jsonl

# Inputs by the million (docs/howto/fuzzing.md): SECONDS for each target, TARGET=name,name, SEED=number.
SECONDS ?= 60
FUZZ = $(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(addprefix --target ,$(TARGET)) $(addprefix --seed ,$(SEED))

fuzz: build
	@$(PACKAGES) test
	$(FUZZ)

# The same over native modules with address, undefined-behaviour and thread sanitizers, built in
# build/fuzz: those of the tree stay as they are.
sanitize: build
	@$(PACKAGES) test
	$(FUZZ) --set asan
	$(FUZZ) --set tsan

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cython-lint vmm/_native tests/fuzz/drivers
	$(BIN)/python -m pytest -q tests/style

PEERS = $(foreach peer,cloud-hypervisor firecracker,$(addprefix --set $(subst -,_,$(peer))=,$(abspath $(wildcard ../shared/peers/$(peer)))))

# Tables, pictures and one page in build/bench; then the questions that need more than a tiny guest.
# BENCH_ARGS="--set firecracker=/path --rounds 50": what vllmd-hypervisor-bench run takes.
bench: build
	@$(PACKAGES) test
	$(BIN)/vllmd-hypervisor-bench run benchmarks/definitions.toml --output build/bench \
	    $(addprefix --set python=,$(VLLMD_TEST_COMMAND)) $(PEERS) $(BENCH_ARGS)
	$(BIN)/python -m benchmarks

# HTML in build/docs: tutorial, how-to, reference from the docstrings; pictures where /dev/kvm is.
docs: build
	@$(BIN)/python -c "import sphinx, myst_parser" 2>/dev/null || \
	    $(BIN)/python -m pip --quiet --disable-pip-version-check install --editable '.[docs]'
	$(BIN)/python -m sphinx --quiet -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

clean:
	rm -rf build dist *.egg-info $(STAMP) $(BUNDLED) vmm/*.bundle
	find vmm -name '*.so' -delete
