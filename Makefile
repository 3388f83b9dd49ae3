# Two commands on a fresh machine with Python 3.11+: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types check bench fuzz soak study-ipo-bandits study-credit docs-objectives docs-prompts docs-reliability
.PHONY: study-reach study-rlhf-vs-dpo docs-frontier docs-training-doctor screenshots wheel clean

demo: $(VENV)/.installed
	$(BIN)/preftune demo --out runs/demo

# Two workers of one thread each: faster on two cores than one of two threads. Files stay whole: some tests build on others.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

bench: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/throughput.py --write

soak: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python scripts/soak.py --kills 50

study-ipo-bandits: $(VENV)/.installed
	$(BIN)/preftune study ipo-bandits --out runs/ipo-bandits

# Three seeds of the built-in ground, and GSM8K where its files lie: 15 minutes on one core.
GSM8K ?= ../shared/data/gsm8k
study-credit: $(VENV)/.installed
	$(BIN)/preftune study credit --out runs/credit $(if $(wildcard $(GSM8K)/train.jsonl),--data $(GSM8K))

# Three seeds of three methods: nine minutes on one of two busy cores.
study-reach: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/preftune study reach --out docs/studies/reach

# Five seeds of both roads.
study-rlhf-vs-dpo: $(VENV)/.installed
	$(BIN)/preftune study rlhf-vs-dpo --out runs/rlhf-vs-dpo

docs-objectives: $(VENV)/.installed
	$(BIN)/python -m preftune.report.objectives_page docs

docs-prompts: $(VENV)/.installed
	$(BIN)/python -m preftune.report.prompting_paper docs

# The tests of broken files and configs, twenty times as long and at random: ten minutes on two cores.
fuzz: $(VENV)/.dev
	PREFTUNE_FUZZ=20 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist load tests/fuzz

docs-reliability: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python scripts/reliability.py

docs-training-doctor: $(VENV)/.installed
	$(BIN)/python scripts/training_doctor.py

# Two minutes on one core, most of them for sampling.
docs-frontier: $(VENV)/.installed
	$(BIN)/python scripts/frontier.py

# Needs chromium on the PATH.
screenshots: $(VENV)/.dev
	$(BIN)/python scripts/screenshots.py

wheel: $(VENV)/.dev
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
