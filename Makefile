# make boot   set everything up, boot a small Linux guest, show its console
# make test   set everything up, run every test (a real guest included where /dev/kvm opens)
# make help   the rest

PYTHON  ?= python3
MEMBERS := pyvmm_kvm pyvmm_memory pyvmm_device pyvmm_virtio pyvmm_loader
PIP     := .venv/bin/python -m pip --disable-pip-version-check --quiet
RUN     := .venv/bin/python
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help boot shell lab test unit lint types bench docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

boot: .venv/.run ## boot a small Linux guest and show its console (ARGS="--cpus 2 --memory 256")
	@$(RUN) -m guest boot $(ARGS)

shell: .venv/.run ## boot the same kernel into a busybox shell
	@$(RUN) -m guest shell $(ARGS)

lab: .venv/.run ## a host with hardware KVM in an emulator (ARGS="aarch64 -- python3 -m pyvmm_kvm")
	@$(RUN) -m lab $(ARGS)

test: .venv/.dev ## every test; real guests run where /dev/kvm opens
	@if [ -w /dev/kvm ]; then $(RUN) -m guest prepare >/dev/null; fi
	$(RUN) -m pytest -q $(ARGS)

unit: .venv/.dev ## the tests that need no guest, in under a minute
	$(RUN) -m pytest -q -m 'not guest and not slow' $(ARGS)

lint: .venv/.dev ## ruff, formatting included
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: .venv/.dev ## mypy, strict
	$(RUN) -m mypy

bench: .venv/.dev ## every benchmark, as JSON
	@for benchmark in benchmarks/*.py; do $(RUN) $$benchmark || exit 1; done

docs: .venv/.dev ## the documentation, in docs/_build/html
	@$(PIP) install $$($(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["docs"])')
	$(RUN) -m sphinx -q -W -b html docs docs/_build/html

clean: ## remove what was built here (the guest stays in the user's cache folder)
	rm -rf .venv build docs/_build pyvmm_*/build pyvmm_*/dist pyvmm_*/src/*.egg-info pyvmm_*/src/*/*.so

# Debian's python3 comes without venv and without Python.h.
.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "pyvmm needs Python 3.11 or newer: apt-get install python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pyvmm needs Python 3.11 or newer; PYTHON=... names another" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null || \
		{ echo "installing python3-venv and python3-dev"; $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y --no-install-recommends python3-venv python3-dev; }
	@command -v cc >/dev/null || { echo "installing gcc"; $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y --no-install-recommends gcc libc6-dev; }
	@$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python $(wildcard pyvmm_*/pyproject.toml pyvmm_*/_build_*.py pyvmm_*/src/*/*.c pyvmm_*/src/*/*.h pyvmm_*/src/*/native/*.h pyvmm_*/src/*/native/*.c pyvmm_*/src/*/native/*.py)
	@echo "installing the five packages into .venv (about 20 s)"
	@$(PIP) install 'setuptools>=77' 'cffi>=2.0' 'typing-extensions>=4.6'
	@$(PIP) install --no-build-isolation --no-deps $(MEMBERS:%=-e ./%)
	@$(RUN) -m compileall -q $(MEMBERS:%=%/src)
	@touch $@

.venv/.dev: .venv/.run pyproject.toml
	@echo "installing the test tools into .venv (about 20 s)"
	@$(PIP) install $$($(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"])')
	@touch $@
