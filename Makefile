# `make demo` and `make test` set up everything they need in .venv, from nothing but Python 3.10+,
# make and a C++ compiler. TORCH=2.15.0 tries another version of torch.
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
PYTHON ?= python3
WORKERS ?= 2
QUIETLY := --quiet --disable-pip-version-check --no-compile
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-torch-$(TORCH)
# Every process that the tests start imports torch, which takes twice as long without its bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test suite lint gpu bench clean
demo: $(READY)
	$(BIN)/python -m fusepass demo $(ARGS)

# Types are checked while the tests are collected.
test: $(READY)-test
	$(MAKE) --no-print-directory -j2 suite lint

suite: $(READY)-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(READY)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and by its exact version; a later install then finds it satisfied. What is imported is
# compiled then: all of it ahead takes longer.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.ready-*
	sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install $(QUIETLY) torch==$(TORCH) -c $(VENV)/constraints.txt
	$(BIN)/python -m pip install $(QUIETLY) -c $(VENV)/constraints.txt -e .
	touch $@

$(READY)-test: $(READY)
	$(BIN)/python -m pip install $(QUIETLY) -c $(VENV)/constraints.txt -e '.[test]'
	touch $@

$(READY)-bench: $(READY)-test
	$(BIN)/python -m pip install $(QUIETLY) -c $(VENV)/constraints.txt -e '.[bench,models]'
	touch $@

# On a machine with an H100 or H200. PY=python uses the environment there is instead of .venv.
PY ?= $(BIN)/python
RESULTS ?= benchmarks/results
# Version 0.1.0.
BEFORE ?= ecaf155
gpu: $(if $(filter file,$(origin PY)),$(READY)-test)
	$(PY) -m pytest -m gpu -n $(WORKERS) --dist worksteal -p no:benchmark $(ARGS)

# Every results file anew, each kept up to date as it goes, and from them every table and picture of
# the documentation; one that fails does not stop the rest. benchmarks/README.md: how long it takes.
bench: $(if $(filter file,$(origin PY)),$(READY)-bench)
	-$(PY) benchmarks/linear.py --training --out $(RESULTS)/bf16.json --picture $(RESULTS)/bf16.svg
	-$(PY) benchmarks/linear.py --grid --out $(RESULTS)/grid.json
	-$(PY) benchmarks/linear.py --dtype float16 --out $(RESULTS)/fp16.json
	-$(PY) benchmarks/linear.py --dtype float32 --out $(RESULTS)/fp32.json
	-$(PY) benchmarks/linear.py --dtype float32 --precision high --out $(RESULTS)/tf32.json
	-$(PY) benchmarks/beside_quack.py --out $(RESULTS)/quack.json
	-git worktree add --force --detach build/before $(BEFORE)
	-$(PY) benchmarks/before_after.py build/before . --commits $(BEFORE) $$(git rev-parse HEAD) --out $(RESULTS)/before-after.json
	-$(PY) benchmarks/kernelbench.py --out $(RESULTS)/kernelbench.json
	-$(PY) benchmarks/accuracy.py --json $(RESULTS)/accuracy.json
	-$(PY) benchmarks/accuracy.py --gradients --json $(RESULTS)/accuracy-gradients.json
	-$(PY) benchmarks/host.py --out $(RESULTS)/host.json
	-$(PY) benchmarks/training.py --planning --out $(RESULTS)/training.json
	-$(PY) benchmarks/models.py --profile --out $(RESULTS)/models.json
	-$(PY) benchmarks/models.py --profile --train --out $(RESULTS)/models-training.json
	-$(PY) benchmarks/models.py --profile --dtype float32 --peers inductor eager fusepass --out $(RESULTS)/models-float32.json
	-$(PY) benchmarks/models.py --profile --dtype float32 --peers inductor eager fusepass --train --out $(RESULTS)/models-float32-training.json
	-$(PY) benchmarks/models.py --models vit_b gpt2 llama --modes reduce-overhead max-autotune-no-cudagraphs --out $(RESULTS)/models-modes.json
	-$(PY) benchmarks/products.py --out $(RESULTS)/products.json
	-$(PY) benchmarks/gated.py --out $(RESULTS)/gated.json
	-$(PY) benchmarks/linears.py --out $(RESULTS)/linears.json
	-$(PY) benchmarks/few_rows.py --out $(RESULTS)/few-rows.json
	-$(PY) benchmarks/counters.py --only "4096->16384 bf" "8192->8192 bf" "2x8192 bf" "1x16384->4096 float32" --out $(RESULTS)/counters.json
	-$(PY) benchmarks/decoding.py --profile --out $(RESULTS)/decoding.json
	-$(PY) benchmarks/coverage.py --out $(RESULTS)/coverage.json --picture $(RESULTS)/coverage.svg
	-$(PY) benchmarks/cpu.py --out $(RESULTS)/cpu.json
	-$(PY) benchmarks/cpu.py --dtype bfloat16 --out $(RESULTS)/cpu-bfloat16.json
	$(PY) benchmarks/summary.py --write

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
