PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test fast bench reproduce validate clean

run: .venv/core  ## simulate a chatbot's traffic and write the report
	.venv/bin/python -m sim scenario=chatbot

test: .venv/dev  ## format, lint, types, import contracts, tests
	sh tests/setup_chromium.sh
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/pytest -n auto --dist worksteal

fast: .fast/built  ## the same program, its hot loop compiled: .fast/bin/kvtwin

bench: .venv/core  ## how fast the simulator is: outputs/bench.json
	if $(MAKE) --no-print-directory fast; then \
		.fast/bin/python tests/benchmarks/bench.py; \
	else \
		.venv/bin/python tests/benchmarks/bench.py; \
	fi

reproduce: .venv/core  ## published tables, row by row
	.venv/bin/python -m tests.reproductions

validate: .venv/core  ## recorded runs of real engines, predicted: outputs/recordings, plain and compiled
	.venv/bin/python -m calibration step=recordings
	if $(MAKE) --no-print-directory fast; then \
		.fast/bin/python -P -m calibration step=recordings out=outputs/recordings_compiled && \
		cmp outputs/recordings/recordings.json outputs/recordings_compiled/recordings.json; \
	fi

.venv/core: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/dev: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	touch $@ .venv/core

.fast/built: .venv/core setup.py $(shell find sim scenarios calibration kernels conf -name '*.py' -o -name '*.yaml')
	sh tests/setup_compiler.sh
	$(PIP) -e '.[compile]'
	rm -rf build
	KVTWIN_COMPILED=1 .venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv --clear .fast
	.fast/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt build/wheel/kvtwin-*.whl
	touch $@

clean:
	rm -rf .fast .venv outputs multirun build dist *.egg-info
