# Two commands do everything: `make demo` and `make test`.  Each makes .venv first where it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
# Modules are compiled when they are first imported, not at the installation; that has to be kept.
unexport PYTHONDONTWRITEBYTECODE

# Test processes side by side: whole files are dealt out, in order, as files share nothing (WORKERS=0: in this process).
WORKERS ?= logical
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test coverage test-platform test-long chaos bench lint wheel stack stack-stop

demo: .venv/ready
	$(BIN)/rd3 run demo
	$(BIN)/rd3 report demo

test: .venv/ready
	$(PYTEST) $(PARALLEL) -m "not platform and not long"

# The same, and how much of the code runs in the test processes themselves.
coverage: .venv/ready
	$(PYTEST) $(PARALLEL) -m "not platform and not long" --cov --cov-report=term:skip-covered

# What needs the whole stack, or kills parts of it; two test processes at most, each with a stack and a cluster of its own.
test-platform: .venv/ready
	$(PYTEST) $(PARALLEL) --maxprocesses 2 --durations=12 -m "platform and not long"

# What takes minutes each, and has a shorter sibling in the targets above.
test-long: .venv/ready
	$(PYTEST) -m long

chaos: stack
	eval "$$(infra/stack/stack.sh env)" && $(BIN)/rd3 infra init \
	    && PYTHONPATH=tests/integration $(BIN)/python tests/integration/faults/chaos.py $(CHAOS)

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
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every study that has a demonstration size (docs/studies.md): run what is missing, with one start of Ray, then write the
# reports.
STUDIES := $(notdir $(basename $(shell grep -l '^small:' pipelines/grids/*.yaml)))
.PHONY: reports
reports: .venv/ready
	$(BIN)/rd3 run $(STUDIES:%=%-small)
	for study in $(STUDIES); do $(BIN)/rd3 report $$study-small || exit 1; done

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
	@echo "Installing RD3 and what it needs into .venv: about 7 GB on the disk, most of it torch's CUDA libraries"
	$(BIN)/uv pip install $(if $(CI),--quiet) --python $(BIN)/python --constraint constraints.txt --editable '.[cluster,diffusion,statistics,dev]'
	@echo "Installed, $$(du -sh .venv | cut -f1) on the disk"
	touch $@
