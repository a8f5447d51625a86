# make test   sets up and runs the whole test suite      make demo   a primary and a replica, live
# make setup  only sets up                               make bench  speed against native SQLite
# make soak   many more random rounds, then make fuzz    make docs   docs/ as a site, in site/
# make clean  removes all that was made here

SHELL := /bin/bash
PYTHON := .venv/bin/python
KERNELS := $(wildcard litefs/_core/*.pyx litefs/_core/*.pxd litefs/_core/*.h)

TEST_SECONDS ?= 2400
# Most tests wait for processes of theirs: two at a time take little longer each on two cores.
TEST_WORKERS ?= 2
SOAK_ROUNDS ?= 500
SOAK_SECONDS ?= 28800
# whatever LITEFS_SOAK lengthens
SOAK_TESTS ?= tests/crash tests/model tests/cluster tests/fs/test_super_crash.py \
	tests/cluster_unit/test_lease_faults.py tests/product tests/backup tests/archive
FUZZ_SECONDS ?= 3600
# SIGINT lets pytest's fixtures unmount; SIGKILL follows a minute later.
BOUNDED = timeout --foreground --signal=INT --kill-after=60

.PHONY: setup consul litestream demo docs test lint bench soak fuzz suites clean
.DELETE_ON_ERROR:

setup: .build-stamp consul

.venv/.installed: pyproject.toml setup.py tools/setup.sh
	./tools/setup.sh
	@touch $@

.build-stamp: .venv/.installed $(KERNELS)
	$(PYTHON) setup.py -q build_ext --inplace
	@touch $@

# The server that tests of the Consul lease run; nothing is done if there is one.
consul:
	./tools/consul/build.sh >/dev/null

# With it, tests restore archives by the real one too; about a minute the first time.
litestream:
	./tools/litestream/build.sh

demo: .build-stamp
	$(PYTHON) tools/demo.py $(DEMO_ARGS)

# The pages that are made from the code, then all of docs/ as a site in site/.
docs: .build-stamp
	$(PYTHON) tools/reference.py
	$(PYTHON) -m mkdocs build --strict

lint: .build-stamp
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

test: lint consul
	$(BOUNDED) $(TEST_SECONDS) $(PYTHON) -m pytest -n $(TEST_WORKERS) --dist loadfile --durations=25 $(PYTEST_ARGS) </dev/null

bench: .build-stamp
	@set -e; for benchmark in kernels bench commit reads lag memory compactor archive_lag archive_cost restore; do $(PYTHON) benchmarks/$$benchmark.py; done

soak: setup
	LITEFS_SOAK=$(SOAK_ROUNDS) $(BOUNDED) $(SOAK_SECONDS) $(PYTHON) -m pytest --timeout=0 $(SOAK_TESTS) </dev/null
	$(MAKE) fuzz

# Three times FUZZ_SECONDS. Atheris is no development dependency: some versions of Python have no wheel of it.
fuzz: setup
	$(PYTHON) tools/fuzz_sanitize.py --seconds $(FUZZ_SECONDS) </dev/null
	$(PYTHON) tools/fuzz.py --seconds $(FUZZ_SECONDS) </dev/null
	if $(PYTHON) -m pip install -q --only-binary :all: "atheris>=2.3" </dev/null; then \
		$(PYTHON) tools/fuzz.py --engine atheris --seconds $(FUZZ_SECONDS) </dev/null; \
	else echo "fuzz: no atheris for this Python, left out" >&2; fi

# Third-party test suites on a native directory and on a mount; arguments: SUITES_ARGS="--quick" or names.
suites: .build-stamp
	$(PYTHON) tools/suites.py $(SUITES_ARGS)

clean:
	rm -rf .venv .build-stamp .cache build dist site wheels *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .demo .fuzz
	rm -f litefs/_core/*.so litefs/_core/*.c
	find litefs tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
