# One word each; `make help` lists them. Needs a Python of 3.11 or newer with its venv module, and nothing else.
# Override on the command line: make demo PORT=9000, make test PYTHON=python3.13.

PYTHON ?= python3
PORT ?= 8000
UV ?= uv

VENV := .venv
BIN := $(VENV)/bin
INSTALLER ?= $(BIN)/python -m pip
RUN := runs/digits_lt
BUNDLE := bundles/digits_lt
SAMPLES := runs/digits_lt_samples

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo setup test check bench triton lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(VENV)/.installed-demo ## Train on handwritten digits, export, and serve on 127.0.0.1:8000 (PORT=...)
	$(BIN)/python -m trainer train digits_lt --output $(RUN) --resume
	$(BIN)/python -m trainer export $(RUN) --output $(BUNDLE)
	@rm -rf $(SAMPLES)
	$(BIN)/python -m trainer samples $(RUN) --output $(SAMPLES) --count 4
	@sh deploy/what_to_try.sh $(SAMPLES) http://127.0.0.1:$(PORT)
	EVENKEEL_HOST=127.0.0.1 EVENKEEL_PORT=$(PORT) $(BIN)/python -m service serve $(BUNDLE)

setup: $(VENV)/.installed-test ## Install everything that development needs into .venv

# Two processes at most: the tests start servers and browsers of their own, which take cores too.
test: $(VENV)/.installed-test ## Run all tests, shared out over two processes
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

check: $(VENV)/.installed-test ## Lint, formatting, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-test ## Measure everything against peers and limits (needs wrk and a quiet machine)
	$(BIN)/python -m tests.benchmarks

triton: $(VENV)/bin/python ## Install NVIDIA's Triton server into .triton, for the test that needs it
	$(INSTALLER) install --upgrade --target .triton --no-deps --requirement tests/end_to_end/triton/requirements.txt

lock: ## Resolve requirements.lock anew (needs uv)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv, and $(UV) is not there: pip install uv, or UV=path" >&2; exit 1; }
	$(UV) pip compile pyproject.toml --universal --python-version 3.11 --all-extras --upgrade --quiet \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock

clean: ## Remove the environment, caches, runs and bundles of the demo
	rm -rf $(VENV) .triton $(RUN) $(BUNDLE) $(SAMPLES) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second call quick; a changed pyproject or lock installs again.
$(VENV)/.installed-demo: EXTRAS := trainer,service
$(VENV)/.installed-test: EXTRAS := trainer,service,test
$(VENV)/.installed-%: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(INSTALLER) install --constraint requirements.lock --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "evenkeel needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo "$(PYTHON) lacks its venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
