PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test bench reproduce clean

run: .venv/core  ## simulate a chatbot's traffic and write the report
	.venv/bin/python -m sim scenario=chatbot

test: .venv/dev  ## format, lint, types, import contracts, tests
	sh tests/setup_chromium.sh
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/pytest

bench: .venv/core  ## how fast the simulator is: outputs/bench.json
	.venv/bin/python -m tests.benchmarks.bench

reproduce: .venv/core  ## published tables, row by row
	.venv/bin/python -m tests.reproductions

.venv/core: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/dev: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	touch $@ .venv/core

clean:
	rm -rf .venv outputs multirun build dist *.egg-info
