# Everything a newcomer needs; each target does its own set-up. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup
SETUP_DEV := $(VENV)/.setup-dev
PY_M = $(BIN)/python -m
TEST_JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo economics transfer bench-transfer bench-engine handoff interference tune-colocated bench-analysis simulate compile-simulator bench-simulate break-even regret soak fuzz claims check-cluster codecs cluster slurm-demo held-out test test-long test-rdma lint types check format report clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(SETUP): pyproject.toml constraints.txt setup.py $(wildcard src/xpyd/native/kernels*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded]'
	touch $@

$(SETUP_DEV): $(SETUP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,nixl,dev]'
	touch $@

setup: $(SETUP) ## make the virtual environment and install xpyd with its embedded MPI and UCX (pip only, no root)

demo: $(SETUP) ## run the main job on this machine: 1P1D against 2 colocated workers; table and HTML report
	$(PY_M) experiments.compare +preset=demo

economics: $(SETUP) ## closed form, no ranks: both ledgers over prompt length and link rate
	$(PY_M) experiments.economics

transfer: $(SETUP) ## the bill alone: KV patterns over this machine's loopback, with a fit of alpha, gamma and bandwidth
	$(PY_M) experiments.transfer placement.allow_shared_node=true

bench-transfer: $(SETUP) ## every transport beside a plain socket and ucx_perftest, on real KV patterns: ARGS=--quick
	$(PY_M) benchmarks.transfer $(ARGS)

bench-engine: $(SETUP_DEV) ## decode steps and prefills beside their bare matrix products and transformers: ARGS=--quick
	$(PY_M) benchmarks.engine $(ARGS)

handoff: $(SETUP) ## what of each transfer is exposed, in every mode of the hand-off, on this machine
	$(PY_M) experiments.handoff placement.allow_shared_node=true

interference: $(SETUP) ## gaps of a decode batch alone and beside prefill chunks of each size
	$(PY_M) experiments.interference

tune-colocated: $(SETUP) ## the colocated rival's best chunk size and batch limit; `make demo` and compare then use it: ARGS=
	$(PY_M) experiments.tune_colocated placement.allow_shared_node=true $(ARGS)

bench-analysis: $(SETUP) ## seconds and memory of the analysis of ten million token rows
	$(PY_M) benchmarks.analysis

simulate: $(SETUP) ## a comparison in simulated time, no ranks: modeled tables in a second; ARGS='model=llama3_8b placement=2p2d'
	$(PY_M) experiments.simulate $(ARGS)

break-even: $(SETUP) ## a map of where splitting pays, no ranks: link x prompt x rate x output, modeled and frozen: ARGS=...
	$(PY_M) experiments.break_even $(ARGS)

regret: $(SETUP) ## what following a frozen plan costs: its ways on real ranks, paired: ARGS=regret.plan=runs/plan/RUN
	$(PY_M) experiments.regret placement.allow_shared_node=true $(ARGS)

compile-simulator: $(SETUP_DEV) ## machine code of the simulator, for runs of a million requests; about a minute, kept outside the sources
	$(PY_M) xpyd.compiling

bench-simulate: $(SETUP) ## CPU time per simulated request, and memory, over instances and requests: ARGS=...
	$(PY_M) benchmarks.simulate $(ARGS)

soak: $(SETUP) ## every kind of fault a hundred times in real sessions, with a table of what became of the requests: ARGS=...
	$(PY_M) benchmarks.soak $(ARGS)

fuzz: $(SETUP_DEV) ## ten thousand hostile configurations, traces, checkpoints, host files and run folders each: ARGS=...
	$(PY_M) tests.fuzz $(ARGS)

claims: $(SETUP) ## the field's headline claims put to the test on this machine; an HTML page: ARGS='claims=quick model=small'
	$(PY_M) experiments.claims placement.allow_shared_node=true $(ARGS)

check-cluster: $(SETUP) ## is this machine ready: MPI, UCX, wires, clocks, memory, versions; a remedy for each finding
	$(PY_M) experiments.check_cluster placement.allow_shared_node=true

codecs: $(SETUP) ## what fp8, int8 and lossless KV save on the wire, cost in time, and change in tokens
	$(PY_M) experiments.codecs

cluster: $(SETUP) ## four Slurm nodes on this machine (root or user namespaces; slurm-wlm, munge, iproute2)
	$(PY_M) launch.virtual_cluster up -n 4 --rate 10gbit

slurm-demo: $(SETUP) ## the same Slurm job on a slow and a fast link of a virtual cluster: two verdicts in one table
	$(PY_M) launch.slurm_demo

held-out: $(SETUP) ## a break-even map of a virtual cluster, frozen, then its cells measured on shaped links: ARGS=...
	$(PY_M) launch.held_out $(ARGS)

# Tests of the virtual cluster measure its links, so they run after all others and one by one; long ones have many ranks.
test: $(SETUP_DEV) ## the tests but for the longest; what needs root, Slurm or a GPU skips with the reason
	$(PY_M) pytest -n $(TEST_JOBS) --dist worksteal --ignore=tests/slurm --ignore=tests/rdma -m "not long"
	$(PY_M) pytest tests/slurm -m "not long"

test-long: $(SETUP_DEV) ## the longest tests, one by one: whole experiments, sweeps and faults on ranks and nodes
	$(PY_M) pytest --ignore=tests/rdma -m long

test-rdma: $(SETUP_DEV) ## the ucx transport and a comparison over InfiniBand verbs, in an emulated guest (QEMU)
	$(PY_M) pytest tests/rdma

lint: $(SETUP_DEV) ## ruff, format check, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck $$(git ls-files '*.sh' '*.sbatch' '.ci/run')

types: $(SETUP_DEV) ## mypy, strict
	$(BIN)/mypy

check: lint types test test-long ## lint, types and tests

format: $(SETUP_DEV) ## format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

report: $(SETUP) ## rebuild report.html of a run folder: make report RUN=runs/compare/... (default: latest)
	$(PY_M) analysis.report $(or $(RUN),$(shell ls -dt runs/*/*/ 2>/dev/null | head -n 1))

clean: ## remove caches; keeps runs and the virtual environment
	rm -rf .pytest_cache .mypy_cache .ruff_cache build
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -exec rm -rf {} +
