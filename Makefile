# Every target makes .venv by itself where it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint bench clean

demo: $(VENV)/.installed
	@$(BIN)/python -m pipelines.demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
#	$(BIN)/mypy

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

# torch alone first: any other request for it pulls gigabytes of CUDA. open_clip alone last, for tests that read what it
# writes: what it depends on would bring torchvision, which cannot be had beside this torch.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or later is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the other packages into $(VENV); this takes some minutes, and 2 GB of disk"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps open_clip_torch
	@touch $@
