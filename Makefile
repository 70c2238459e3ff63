# What a developer types; `make` alone prints the list. Every target makes .venv, and builds, when that is needed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
UV ?= $(shell command -v uv)
# Where `make bench` writes about 25 GB, and removes them.
BENCH_DIR ?= build/bench
# Which rows of a table to measure: all, or names that the --list of `benches/bench_merge.py` or `bench_fusion.py` prints.
ROWS ?= all
# How long `make fuzz` runs each of its targets.
FUZZ_SECONDS ?= 60
# For `make coverage`: which tests; all if empty.
TESTS ?=
# For `make support-table`: --fresh judges again what has its row under build/support.
SUPPORT ?=

BIN := .venv/bin
# Tests in as many processes as there are cores, at most four; torch in one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal
MANIFEST := --manifest-path rust/Cargo.toml
RUST_WANTED := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' rust/Cargo.toml)
RUST_SOURCES := rust/Cargo.toml rust/Cargo.lock $(shell find rust/src -name '*.rs')

export CARGO_TARGET_DIR := $(CURDIR)/rust/target
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
unexport CONDA_PREFIX

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: .venv/.installed ## merge three published models four ways, reload each, print its loss
	$(BIN)/python examples/rxnfp/demo.py

.PHONY: demo-fusion
demo-fusion: .venv/.installed ## merge, mix and fuse three small experts of one base, print bits per byte; minutes
	$(BIN)/python examples/family/demo.py

.PHONY: demo-foreign
demo-foreign: .venv/.installed ## fuse MiniLM's blocks into SmolLM2-135M, print perplexity and text; 8 to 20 minutes
	$(BIN)/python examples/smollm2/demo.py

.PHONY: demo-page
demo-page: .venv/.installed ## detection, a merge, a fusion that is trained and saved: build/demo/demo.html
	$(BIN)/python examples/comprehensive_demo.py --train --eval --small-models

.PHONY: test
test: lint docs rust-test python-test ## run every check that CI runs

.PHONY: lint
lint: .venv/.installed ## formatters, linters, types, and the stub against the built extension
	cargo fmt $(MANIFEST) --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check -- --config-path rust
	cargo clippy $(MANIFEST) --locked --all-targets -- -D warnings
	cargo clippy $(MANIFEST) --locked --all-targets --features python -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/stubtest mol._rust --mypy-config-file pyproject.toml

# Those of these folders that are marked slow or fusion left out: what takes seconds.
QUICK := tests/config tests/structure tests/io tests/merge_methods tests/test_errors.py tests/test_layering.py tests/test_public_api.py

.PHONY: quick
quick: lint ## lint, cargo test of the library, and the Python tests that take seconds
	cargo test $(MANIFEST) --locked --lib
	$(BIN)/pytest -m "not slow and not fusion" $(QUICK)

.PHONY: coverage
coverage: .venv/.installed ## the lines of python/mol that no test runs (TESTS= chooses tests, e.g. tests/merge)
	$(PYTEST) -m "not slow" --cov --cov-report=term-missing $(TESTS)

.PHONY: docs
docs: .venv/.installed ## the documentation as a site, build/docs, and that of the crate; a broken link is an error
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc $(MANIFEST) --locked --no-deps --document-private-items

.PHONY: deny
deny: tools ## cargo-deny: licenses and sources of what the engine is built from, known faults (`cargo install cargo-deny`)
	cargo deny $(MANIFEST) check

.PHONY: rust-test
rust-test: tools ## cargo test
	cargo test $(MANIFEST) --locked

.PHONY: python-test
python-test: .venv/.installed ## pytest
	$(PYTEST)

# libFuzzer's instrumentation, as cargo-fuzz asks for it; no nightly compiler is needed.
COVERAGE := -sanitizer-coverage-level=4 -sanitizer-coverage-inline-8bit-counters -sanitizer-coverage-pc-table -sanitizer-coverage-trace-compares
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module $(addprefix -Cllvm-args=,$(COVERAGE))
HOST := $(shell rustc -vV | sed -n 's/^host: //p')

.PHONY: fuzz
fuzz: tools ## libFuzzer on plans and on headers, a minute each (FUZZ_SECONDS=); what it learns stays in build/fuzz
	rm -rf build/fuzz/scratch
	mkdir -p build/fuzz/{scratch,plan,header}
	cp tests/data/plan_v*.json build/fuzz/plan
	cp fuzz/seeds/header/* build/fuzz/header
	CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/fuzz RUSTFLAGS='$(FUZZ_FLAGS)' CARGO_PROFILE_RELEASE_LTO=off \
	  cargo build --manifest-path fuzz/Cargo.toml --release --target $(HOST)
	for target in plan header; do \
	  TMPDIR=build/fuzz/scratch $(CARGO_TARGET_DIR)/fuzz/$(HOST)/release/$$target build/fuzz/$$target -dict=fuzz/$$target.dict \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -artifact_prefix=build/fuzz/ > build/fuzz/$$target.log 2>&1 \
	    || { tail -n 40 build/fuzz/$$target.log; exit 1; }; \
	  echo "$$target: $$(grep ^Done build/fuzz/$$target.log), nothing found"; \
	done

LOWEST := $(shell sed -n 's/^fusion = .*transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)

.PHONY: test-lowest
test-lowest: .venv/.installed ## the tests of fusion with the oldest transformers that pyproject.toml allows
	$(BIN)/python -m pip install --quiet --target build/lowest --upgrade 'transformers==$(LOWEST)'
	PYTHONPATH=build/lowest $(BIN)/pytest tests/core

.PHONY: format
format: .venv/.installed ## rewrite the sources as the formatters want them
	cargo fmt $(MANIFEST)
	cargo fmt --manifest-path fuzz/Cargo.toml -- --config-path rust
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: bench-build bench-kernels bench-small bench-merge ## every benchmark, about two hours and 25 GB of disk

.PHONY: bench-kernels
bench-kernels: tools ## criterion: bytes per second, per method and dtype
	cargo bench $(MANIFEST) --locked

.PHONY: bench-small
bench-small: .venv/.installed ## pytest-benchmark: whole merges of a small family, against a copy and numpy
	PYTHONPATH=benches $(BIN)/pytest benches/bench_small.py --benchmark-only --benchmark-columns=median,iqr,rounds --timeout=600

.PHONY: bench-merge
bench-merge: .venv/.installed ## 1.1B models: mol, cp and mergekit in the same rounds, one table (ROWS=, BENCH_DIR=)
	$(BIN)/python benches/bench_merge.py --dir $(BENCH_DIR) $(ROWS)

.PHONY: bench-build
bench-build: .venv/.installed ## the wheel from nothing: its size, and what the build took (CHECKOUT= builds another one)
	$(BIN)/python benches/build.py $(CHECKOUT)

.PHONY: bench-fusion
bench-fusion: .venv/.installed ## fused models against their parents, in the same rounds, one table (ROWS=)
	$(BIN)/python benches/bench_fusion.py $(ROWS)

.PHONY: parity
parity: .venv/.installed ## compare with mergekit over every method that both have and write docs/parity.md, ten minutes
	$(BIN)/python benches/parity/run.py

.PHONY: support-table
support-table: .venv/.installed ## judge every model type of transformers and write docs/support.md, half an hour (SUPPORT=--fresh)
	$(BIN)/python benches/support/run.py $(SUPPORT)

.PHONY: evidence
evidence: .venv/.installed ## merges and fusions of a small family, measured: docs/evidence.md, hours (ROWS=quick: two rows again, compared)
	$(BIN)/python benches/evidence/run.py $(ROWS)

.PHONY: build
build: .venv/.installed ## make .venv with everything in it, and the extension

.PHONY: clean
clean: ## remove what was built, the virtual environment too
	rm -rf .venv rust/target build python/mol/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

# One clear line each, before anything slow starts.
.PHONY: tools
tools:
	@fail() { echo "mol needs $$1" >&2; exit 1; }; \
	command -v $(PYTHON) > /dev/null || fail "Python 3.10 or newer, and there is no $(PYTHON) here (make PYTHON=/path/to/python3 uses another)"; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || fail "Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1) (make PYTHON=/path/to/python3 uses another)"; \
	command -v cargo > /dev/null || fail "Rust $(RUST_WANTED) or newer, and there is no cargo here (rustup installs it)"; \
	have=$$(rustc --version | cut -d ' ' -f 2); \
	$(PYTHON) -c 'import sys; have, want = ([int(x) for x in v.split("-")[0].split(".")] for v in sys.argv[1:]); sys.exit(have < want)' \
	  "$$have" "$(RUST_WANTED)" || fail "Rust $(RUST_WANTED) or newer, and rustc is $$have (rustup update)"

.venv/.made:
	@$(MAKE) --no-print-directory tools
	if [ -n "$(UV)" ]; then "$(UV)" venv --quiet --seed --allow-existing --python "$(PYTHON)" .venv; else "$(PYTHON)" -m venv .venv; fi
	touch $@

# `maturin develop` installs what pyproject.toml asks for and leaves mol importable from python/.
.venv/.installed: .venv/.made pyproject.toml $(RUST_SOURCES)
	@$(MAKE) --no-print-directory tools
	if [ -n "$(UV)" ]; then "$(UV)" pip install --quiet --python $(BIN)/python 'maturin>=1.9,<2'; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check 'maturin>=1.9,<2'; fi
	VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/maturin develop --release --locked --extras fusion,dev $(if $(UV),--uv)
	touch $@
