# `make demo` and `make test` need only Python 3.11 to 3.13 and make; both set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
# The tests of the executor need torch; `make test EXTRAS=test` does without, and says what it skips.
EXTRAS ?= test,executor
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-deep fuzz lint bench bench-gpu clean

demo: .venv/core
	$(BIN)/moesim demo -o moesim-demo

test: .venv/test
	$(BIN)/python -m pytest -n auto --dist worksteal

# The property tests alone, with other examples on every run and ten times as many.
test-deep: .venv/test
	$(BIN)/python -m pytest -n auto --dist worksteal -m hypothesis --hypothesis-profile=deep

# Mutated files for every reader, a worker for each core: 200,000 take a quarter of an hour on two slow ones.
# Another SEED tries others; each failure comes with the command that repeats it.
MUTATIONS ?= 200000
SEED ?= 0
fuzz: .venv/test
	$(BIN)/python -m tests.fuzz --mutations $(MUTATIONS) --seed $(SEED)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make bench BASE=COMMIT compares processor times with the commit's instead.
bench: .venv/core
	$(BIN)/python -m benchmarks$(if $(BASE),.against $(BASE))

# With a Python of your own where torch is already there: make bench-gpu GPU_PYTHON=python3
bench-gpu: $(if $(GPU_PYTHON),,.venv/test)
	$(or $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu

clean:
	rm -rf .venv build dist moesim-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "moesim needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv

# Stamps, so that a second run does not ask pip again.
.venv/core: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

.venv/test: .venv/core
	$(INSTALL) -e '.[$(EXTRAS)]'
	@touch $@
