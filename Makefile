PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/registry
# One thread a process: two processes with two threads each on two cores are several times slower.
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: help install quickstart test lint clean

help:
	@echo "make quickstart   install, then forget twelve fictional people and audit the result (offline)"
	@echo "make test         install, then run the tests"
	@echo "make lint         ruff and the import rules"

install: $(VENV)/.installed

# torch first and pinned: otherwise pip resolves the CUDA build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(MAKE) --no-print-directory $(RUN)/data/README.md
	$(MAKE) --no-print-directory --jobs 2 $(RUN)/original/model/config.json $(RUN)/retrained/model/config.json
	HF_HUB_OFFLINE=1 $(LAUNCH) recipes/unlearn.py --config recipes/registry/wga.yaml

$(RUN)/data/README.md:
	$(BIN)/python -m hf_unlearn.examples.registry $(RUN)/data

$(RUN)/original/model/config.json: $(RUN)/data/README.md recipes/registry/finetune.yaml
	HF_HUB_OFFLINE=1 $(LAUNCH) recipes/finetune.py --config recipes/registry/finetune.yaml

$(RUN)/retrained/model/config.json: $(RUN)/data/README.md recipes/registry/finetune.yaml
	HF_HUB_OFFLINE=1 $(LAUNCH) recipes/finetune.py --config recipes/registry/finetune.yaml \
		--request $(RUN)/data/requests/person.json --output_dir $(RUN)/retrained --disable_tqdm true

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean:
	rm -rf runs $(VENV)
