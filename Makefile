# Two commands do everything: `make demo` and `make test`.  Each makes .venv first where it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo test test-platform chaos bench lint wheel stack stack-stop

demo: .venv/ready
	$(BIN)/rd3 run demo
	$(BIN)/rd3 report demo

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not platform"

# What needs the whole stack, or kills parts of it.
test-platform: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m platform

chaos: stack
	eval "$$(infra/stack/stack.sh env)" && $(BIN)/rd3 infra init && $(BIN)/python tests/integration/faults/chaos.py $(CHAOS)

# How fast it is on this CPU, beside reference paths; never part of the tests.  docs/benchmarks.md says what it shows.
bench: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks --device cpu --out .bench $(BENCH)

stack: .venv/ready
	infra/stack/stack.sh start

stack-stop:
	infra/stack/stack.sh stop

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# The documentation as a site, in site/; a broken link is an error.
.PHONY: docs docs-serve
docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: .venv/docs-ready
	$(BIN)/mkdocs build --strict --quiet

docs-serve: .venv/docs-ready
	$(BIN)/mkdocs serve

.venv/docs-ready: .venv/ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'
	touch $@

# What the nodes of a cluster install: RD3's wheel and the versions of everything else.
wheel: .venv/ready
	rm -rf dist
	$(BIN)/uv build --quiet --wheel --build-constraint constraints.txt --out-dir dist
	cp constraints.txt dist/

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("RD3 needs Python 3.11 or newer: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(shell sed -n 's/^uv==//p' constraints.txt)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt --editable '.[cluster,diffusion,dev]'
	touch $@
