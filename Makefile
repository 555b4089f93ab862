# Every target makes .venv itself if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow test-browser lint bench clean

demo: $(VENV)/.demo
	@$(BIN)/python -m pipelines.demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 4

slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

# The pages in a real browser. Its pictures of them are left in build/screenshots.
test-browser: $(VENV)/.browser
	CLIP_TRANSFORMS_SCREENSHOTS=build/screenshots $(BIN)/python -m pytest -m slow tests/browser

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.forward --model ViT-B/32
	$(BIN)/python -m benchmarks.captions
	$(BIN)/python -m benchmarks.embed
	$(BIN)/python -m benchmarks.readers
	$(BIN)/python -m benchmarks.feed
	$(BIN)/python -m benchmarks.small_shards
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.memory --huge
	$(BIN)/python -m benchmarks.label
	$(BIN)/python -m benchmarks.filter
	$(BIN)/python -m benchmarks.deduplicate
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.evaluate
	$(BIN)/python -m benchmarks.browse

clean:
	rm -rf $(VENV) demo

# The demo needs no test tools. On Linux, torch from PyPI brings CUDA: 5.2 GB in .venv for the demo and 5.9 GB with the
# test tools, where a build of torch for CPUs takes 2 GB. torch is asked for alone and first, so that an index which
# offers both builds can answer with the small one. pip keeps a torch of this version that is installed in .venv already;
# README.md, "See it".
$(VENV)/.demo: setup.py constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or later is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the other packages into $(VENV): some minutes, and 6 GB of disk if torch brings CUDA, else 2 GB"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

# These come last and without their dependencies, for tests that read their files, or that they read ours. Of the
# dependencies, torchvision cannot be installed beside a torch for CPUs, and others are pinned to old NumPy.
READERS := open_clip_torch autofaiss embedding-reader clip_retrieval
$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(READERS)
	@touch $@

# Debian's chromium, since Playwright's own browsers do not come from a package index; apt-get needs root, or sudo before
# make.
$(VENV)/.browser: $(VENV)/.test
	command -v chromium >/dev/null || (apt-get update -q && apt-get install -yq --no-install-recommends chromium)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test-browser]'
	@touch $@
