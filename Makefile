# Two commands for a user (serve, test), a few more for a developer. Needs Python 3.11 to 3.13, pip and make.
#
#   make serve                       a venv, the packages, the default model, the samples, the server on :8000
#   make serve ARGS="--port 9000"    the same with any flag of `lorry serve`
#   make test                        everything CI runs
#   make lint                        the part of it that runs no test
#   make fmt                         sorts imports, formats, mends what ruff can
#   make docs                        writes the parts of README.md and docs/ that come from the code
#   make picture                     writes README's picture of the page, from a server on :8000
#   make recording                   writes README's recording of a terminal, from a server on :8000 with only the samples
#   make clients                     every client there is a test for, from PyPI and npm, against a live server, and
#                                    the table of clients/README.md; ARGS names groups of them
#   make crash                       kills a server 200 times, and two servers and what they share, while clients change
#                                    everything, and checks what is there afterwards; ARGS="--seed 7" repeats a run
#   make storm                       requests under every change of adapters for 20 minutes, each answer compared with the
#                                    same request alone; ARGS="--minutes 5 --seed 7"
#   make bench                       measures this machine; see benchmarks/README.md
#   make clean                       removes the venv and every cache in the checkout
#
# Variables:
#   PYTHON=python3.12                the interpreter to use; found by itself otherwise
#   TORCH_INDEX=URL                  where torch alone comes from (of the clients, too). A Linux machine without a GPU wants
#                                    https://download.pytorch.org/whl/cpu: the ordinary build brings gigabytes of CUDA
#   MODEL=…                          what to serve; empty is the default model
#   ARGS=…                           further flags of `lorry serve`, of the benchmark or of the clients
#   JOBS=2                           test processes

PYTHON ?=
TORCH_INDEX ?=
MODEL ?=
ARGS ?=
JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# Stamps: a target is done again only when what it was made from has changed.
VENV_STAMP := $(VENV)/.made
TORCH_STAMP := $(VENV)/.torch
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

# What the installation compiles, where there is a C compiler.
COMPILED := server/build_compiled.py $(wildcard server/lorry/model/compiled/*.[ch]) server/lorry/model/compiled/recipe.py

.DEFAULT_GOAL := help
.PHONY: help serve test lint fmt docs picture recording pytest clients clients-quick crash storm bench install install-dev clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

serve: $(RUN_STAMP)
	@$(BIN)/lorry serve $(MODEL) --port 8000 --samples $(ARGS)

test: lint pytest clients-quick

lint: $(DEV_STAMP)
	@echo '==> ruff check' && $(BIN)/ruff check .
	@echo '==> ruff format --check' && $(BIN)/ruff format --check .
	@echo '==> mypy' && $(BIN)/mypy
	@echo '==> lint-imports' && $(BIN)/lint-imports

# One torch thread a process: the processes share the cores already.
QUIET := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

# Those that only ask the shared server, and count on no engine having seen what they sent before.
ON_RAY := generate completions grammars vllm_fields adapter_header clients stored_responses

pytest: $(DEV_STAMP)
	@echo '==> pytest'
	$(QUIET) \
	  $(BIN)/pytest --numprocesses $(JOBS) --maxprocesses 4 --dist worksteal
	@echo '==> pytest tests/api, the engine in a process of its own'
	$(QUIET) \
	  $(BIN)/pytest --numprocesses $(JOBS) --maxprocesses 4 --dist worksteal tests/api --engine-process on
	@echo '==> pytest tests/api, two engines on Ray'
	$(QUIET) \
	  $(BIN)/pytest $(ON_RAY:%=tests/api/test_%.py) --engine-process ray

clients: $(DEV_STAMP)
	@PYTHONPATH=tests TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python -m clients $(ARGS)

# The part of it that needs no base: its few packages come from pip's index, as all others do.
clients-quick: $(DEV_STAMP)
	@echo '==> clients'
	@PYTHONPATH=tests $(BIN)/python -m clients --quick

crash: $(DEV_STAMP)
	@$(QUIET) PYTHONPATH=tests $(BIN)/python -m support.crashes $(ARGS)

storm: $(DEV_STAMP)
	@$(QUIET) PYTHONPATH=tests $(BIN)/python -m support.storm $(ARGS)

docs: $(DEV_STAMP)
	@PYTHONPATH=tests $(BIN)/python -m support.readme
	@PYTHONPATH=tests $(BIN)/python -m support.matrix --write
	@PYTHONPATH=tests $(BIN)/python -m support.decoder_outcomes --write

picture: $(DEV_STAMP)
	@PYTHONPATH=tests $(BIN)/python -m support.picture http://localhost:8000

recording: $(DEV_STAMP)
	@PYTHONPATH=tests $(BIN)/python -m support.recording http://localhost:8000

fmt: $(DEV_STAMP)
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(DEV_STAMP)
	@$(BIN)/python -m benchmarks $(ARGS)

install: $(RUN_STAMP)
install-dev: $(DEV_STAMP)

# The interpreter must really run: a version manager's shim exists for versions that do not.
# Where the distribution splits ensurepip off, the interpreter's own pip fills the venv.
$(VENV_STAMP):
	@set -e; \
	if $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null && $(PIP) --version >/dev/null 2>&1; then \
	  echo '==> $(VENV) is there already'; touch $@; exit 0; \
	fi; \
	found=; \
	for python in $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	  if "$$python" -c '$(SUPPORTED)' 2>/dev/null; \
	  then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo 'error: no Python 3.11, 3.12 or 3.13 found$(if $(PYTHON), as $(PYTHON)); say which with: make PYTHON=/path/to/python3.12' >&2; \
	  exit 1; \
	fi; \
	echo "==> $(VENV) with $$("$$found" --version)"; \
	rm -rf $(VENV); \
	"$$found" -m venv $(VENV) >/dev/null 2>&1 || { \
	  rm -rf $(VENV); \
	  "$$found" -m venv --without-pip $(VENV); \
	  "$$found" -m pip --python $(BIN)/python install --quiet pip; \
	}; \
	touch $@

# torch first and alone: pip would otherwise take whichever build another package's range admits.
$(TORCH_STAMP): $(VENV_STAMP) constraints.txt
	@if [ -z "$(TORCH_INDEX)" ] && [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
	  echo '==> No NVIDIA driver here. If torch below comes with gigabytes of CUDA, stop and say:'; \
	  echo '    make serve TORCH_INDEX=https://download.pytorch.org/whl/cpu'; \
	fi
	@echo '==> torch (the largest download)'
	@$(PIP) install --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	  "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(RUN_STAMP): $(TORCH_STAMP) pyproject.toml constraints.txt $(COMPILED)
	@echo '==> lorry and what it runs on'
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(DEV_STAMP): $(TORCH_STAMP) pyproject.toml constraints.txt $(COMPILED)
	@echo '==> lorry and what its tests need'
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(RUN_STAMP)

clean:
	rm -rf $(VENV) build/clients .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
