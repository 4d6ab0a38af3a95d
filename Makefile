# One command for each thing; every target sets up .venv first if it has to.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check conformance bundle bench serve
.DEFAULT_GOAL := setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt pip
	# torch by its pinned version first: another package's open range would fetch a newer build
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --group dev -e '.[anthropic,google,openai]'
	touch $(READY)

demo: $(READY)
	$(BIN)/stylus demo

# a file's tests share their servers, so files are what two processes share out
test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

NPM := tests/conformance/node_modules/.package-lock.json

$(NPM): tests/conformance/package.json tests/conformance/package-lock.json
	cd tests/conformance && npm ci --loglevel=error

conformance: $(READY) $(NPM) bundle
	$(BIN)/python -m tests.conformance

bundle: $(READY) $(NPM)
	$(BIN)/python -m examples.mcpb.build

bench: $(READY)
	$(BIN)/python -m tests.benchmarks.loop
	$(BIN)/python -m tests.benchmarks.pocket

serve: $(READY)
	$(BIN)/stylus serve --http
