# make help lists the targets. Everything runs inside .venv; nothing else on the machine is touched.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PROFILE ?= cpu
CORES ?= all
ENGINE ?= local
UV := uv==0.13.8
BIN := .venv/bin
TESTS ?= tests
MOMENTS ?= 12
NBVAL = OMP_NUM_THREADS=1 TQDM_DISABLE=1 $(BIN)/python -m pytest -q --nbval-lax --nbval-current-env \
  --nbval-cell-timeout 300 -p no:cacheprovider

.PHONY: help setup book record test kills lab preview pdf sources refresh compare claims bench lint unit nbval book-check lock

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  PROFILE=smoke|cpu|record|gpu|paper where it applies (default cpu)"

setup: .venv/.ready  ## make .venv with the locked versions

.venv/.ready: requirements.lock pyproject.toml
	@python=$$(for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$p; break; }; done || true); \
	if [ -z "$$python" ]; then echo "no Python 3.11 to 3.13 found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	if [ ! -x $(BIN)/uv ]; then echo "making .venv with $$($$python --version)"; rm -rf .venv; $$python -m venv .venv; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check '$(UV)'; fi
	@echo "installing the locked versions (several GB the first time)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@# A user's own `lib` in the working directory does not hide this one; another checkout's does.
	@echo 'import os; os.path.exists("lib/record/files.py") or __import__("lib")' \
	  > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/companion.pth
	@touch $@

book: .venv/.ready  ## run every notebook that is not up to date, build the book
	@$(BIN)/python -m tools.run --profile $(PROFILE) --engine $(ENGINE) --cores $(CORES)

record: .venv/.ready  ## the same with the planned replicates, which judge the claims; hours, resumes, adds to what is there
	@$(BIN)/python -m tools.run --profile record --engine $(ENGINE) --cores $(CORES)

preview: .venv/.ready  ## build the book from the committed outputs; runs no experiment
	@$(BIN)/python -m tools.book --committed

pdf: preview  ## the same as one PDF; needs Chromium
	@$(BIN)/python -m tools.pdf

lab: .venv/.ready  ## JupyterLab; each notebook is listed once, and its .py file follows it
	@$(BIN)/jupyter lab --notebook-dir=notebooks --ContentsManager.hide_globs='["__pycache__", "*.py", "*.yaml"]'

sources: .venv/.ready  ## train the source models of models/ again, side by side; hours, resumes
	@printf '%s\n' noto twemoji judge | OMP_NUM_THREADS=1 xargs -P 2 -n 1 $(BIN)/python -m tools.sources

refresh compare claims: PROFILE = record

refresh: .venv/.ready  ## take a finished run's notebooks, figures and results into the tree
	@$(BIN)/python -m tools.refresh --profile $(PROFILE)

compare: .venv/.ready  ## claims and numbers that changed between the committed results and the latest run
	@$(BIN)/python -m tools.compare --profile $(PROFILE)

claims: .venv/.ready  ## one line a claim: id, profile, verdict, expected, measured, n
	@$(BIN)/python -m tools.list_claims --profile $(PROFILE)

bench: .venv/.ready  ## timings: loop, measures, steps of ANT and SDFT, sampling, DDS
	@$(BIN)/python -m tools.bench

kills: .venv/.ready  ## kill jobs at MOMENTS random moments: what they end with must not change
	@OMP_NUM_THREADS=1 $(BIN)/python -m tools.bench_kills --moments $(MOMENTS)

test: lint unit nbval book-check  ## everything that is checked, in minutes

lint: .venv/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo

unit: .venv/.ready
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --ignore tests/test_book.py $(TESTS)

nbval: .venv/.ready
	@$(BIN)/python -m tools.prepare_nbval
	@$(NBVAL) runs/nbval/notebooks/50_source.ipynb  # the others load what it trains
	@$(NBVAL) -n 2 --dist loadscope --ignore runs/nbval/notebooks/50_source.ipynb runs/nbval/notebooks

book-check: .venv/.ready
	@$(BIN)/python -m tools.book --committed
	@BOOK_HTML=runs/preview/book/_build/html $(BIN)/python -m pytest -q tests/test_book.py

lock: .venv/.ready  ## resolve pyproject.toml into requirements.lock again
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-header \
	  --no-annotate --group dev pyproject.toml -o requirements.lock
