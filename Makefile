# Everything from a new clone: `make run` boots a guest, `make test` proves the model.
# Needs python3 >= 3.11 and make; the network only for the package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.septum-installed
ARGS ?=

.PHONY: setup run test lint types npm docs bench bench-explore scenarios bugs verdicts compare kill-table clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "septum needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

run: $(STAMP)
	@$(BIN)/septum run $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy --strict src

# Other people's parsers, which judge what Septum writes. Tests that need them say so when they skip.
npm:
	@cd tests/npm && npm install --no-package-lock --no-audit --no-fund --ignore-scripts --silent

# The documentation as a site, in build/site: open index.html. Nothing is fetched from a network; only
# the search box wants a server, such as `python3 -m http.server -d build/site`.
docs: $(VENV)/.septum-docs
	@$(BIN)/python tools/site_builder.py

$(VENV)/.septum-docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

bench: $(STAMP)
	@$(BIN)/python bench/module.py
	@$(BIN)/python bench/boot.py
	@$(BIN)/python bench/explore.py

bench-explore: $(STAMP)
	@$(BIN)/python bench/explore.py $(ARGS)

scenarios: $(STAMP)
	@$(BIN)/python -m septum.scenarios.check $(ARGS)

verdicts: $(STAMP)
	@$(BIN)/python tools/verdicts.py --write $(ARGS)

bugs: $(STAMP)
	@$(BIN)/python tools/bugs.py $(ARGS)

kill-table: $(STAMP)
	@$(BIN)/python -m septum.conform.mutate $(ARGS)

# Every ablation and proposal: the verdict table, with a story for each promise that one breaks.
# Exit code 1 (something broke) and 3 (a budget ran out) are answers, too.
compare: $(STAMP)
	@$(BIN)/septum compare --ablations --proposals --workers 2 $(ARGS); \
	code=$$?; case $$code in 0|1|3) ;; *) exit $$code ;; esac

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis septum-report septum-compare
