# Every target makes .venv itself if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint bench clean

demo: $(VENV)/.installed
	@$(BIN)/python -m pipelines.demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.forward --model ViT-B/32
	$(BIN)/python -m benchmarks.captions
	$(BIN)/python -m benchmarks.embed
	$(BIN)/python -m benchmarks.readers
	$(BIN)/python -m benchmarks.small_shards
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.memory --huge
	$(BIN)/python -m benchmarks.label

clean:
	rm -rf $(VENV) demo

# Install torch alone and first: as a dependency of another package it would pull gigabytes of CUDA. Install open_clip
# last and without its dependencies, for tests that read its files: its dependency torchvision cannot be installed beside
# this torch.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or later is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the other packages into $(VENV); this takes some minutes and 2 GB of disk"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps open_clip_torch
	@touch $@
