# The gate is the same at home and in CI: `make check`, then `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
ARGS ?=
# Empty takes the registry's build of torch, pinned by hash. On a machine without a GPU, TORCH_BACKEND=cpu takes the
# same version from PyTorch's own index instead: a tenth of the download, but no hash to check.
TORCH_BACKEND ?=
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
INTO_PEERS := $(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --require-hashes
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' requirements/torch.txt)

.PHONY: help setup check test chaos faults soak fuzz bench bench-check demo loop-demo paper results peers lock clean
help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: $(VENV)/.installed ## Make .venv with everything that is needed.

$(VENV)/.installed: requirements/bootstrap.txt requirements/dev.txt requirements/torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is wanted, found " + sys.version.split()[0])'
	@echo "making $(VENV): the first time this downloads some 3 GB, most of it torch (see TORCH_BACKEND in the Makefile)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
ifeq ($(TORCH_BACKEND),)
	$(UV) --require-hashes -r requirements/dev.txt -r requirements/torch.txt
else
	$(UV) --require-hashes -r requirements/dev.txt
	$(UV) --torch-backend=$(TORCH_BACKEND) $(TORCH)
endif
	$(UV) --no-deps --no-build-isolation --editable .
	@touch $@

check: setup ## Format, lint, types, and which package may import which.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_imports.py

test: check ## Everything a change needs: check, unit, contract, integration on real Kafka and Redis, faults.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

chaos: setup ## SEEDS=n runs of 300,000 samples under random faults, judged by an oracle of its own; JSON=out.json.
	$(BIN)/python -m tests.chaos --seeds $(or $(SEEDS),1) $(if $(JSON),--json "$(JSON)") $(ARGS)

faults: setup ## The faults that take too long for `make test`, half an hour in all; JSON=out.json.
	$(BIN)/python -m tests.hard_faults $(if $(JSON),--json "$(JSON)") $(ARGS)

soak: setup ## MINUTES=n of load at 70 % with faults at random: nothing differs, nothing grows; JSON=out.json.
	$(BIN)/python -m tests.chaos.soak --minutes $(or $(MINUTES),60) $(if $(JSON),--json "$(JSON)") $(ARGS)

fuzz: $(VENV)/.fuzz ## MINUTES=n of bytes made up by coverage for everything that decodes bytes; ARGS="--only NAME …".
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) $(ARGS)

# Not part of setup: the fuzzer has wheels for Linux only.
$(VENV)/.fuzz: $(VENV)/.installed requirements/fuzz.txt
	$(UV) --require-hashes -r requirements/fuzz.txt
	@touch $@

bench: setup ## Measure speed: inference, ingest, pipeline, training; JSON=out.json; on the data in TELLTALE_DATA if set.
	$(BIN)/python -m benchmarks.floors $(if $(JSON),--json "$(JSON)") $(if $(TELLTALE_DATA),--data "$(TELLTALE_DATA)")

bench-check: setup ## Fail if a ratio in JSON=out.json is below its floor; measures first if there is no such file.
	$(BIN)/python -m benchmarks.floors --check $(if $(JSON),--json "$(JSON)") $(if $(TELLTALE_DATA),--data "$(TELLTALE_DATA)")

demo: setup ## Run the product live on this machine; options in ARGS="…".
	$(BIN)/telltale demo $(ARGS)

loop-demo: setup ## A fleet changes its regime, is retrained, and bad models get nowhere: ARGS="--json out.json"; 8 minutes.
	$(BIN)/python -m deploy.loop_demo $(ARGS)

paper: setup ## Run the paper's experiments at quick scale on the data in TELLTALE_DATA; results in FOLDER.
	@test -n "$(TELLTALE_DATA)" || { echo "TELLTALE_DATA wants the folder with SMAP_train.parquet and so on" >&2; exit 2; }
	$(BIN)/telltale paper all --data "$(TELLTALE_DATA)" --folder "$(or $(FOLDER),.telltale/paper)" $(ARGS)

results: setup ## Measure detector and opponents on the data in TELLTALE_DATA, three seeds; takes hours.
	@test -n "$(TELLTALE_DATA)" || { echo "TELLTALE_DATA wants the folder with SMAP_train.parquet and so on" >&2; exit 2; }
	$(BIN)/python -m benchmarks.quality --data "$(TELLTALE_DATA)" --minutes 15 --out results.json $(ARGS)

peers: $(PEERS)/.installed ## Make .venv-peers, whose libraries the benchmarks are compared with.

# torch first: lrnnx is built with it. TORCH_BACKEND is not heeded: opponents get the build that is pinned by hash.
$(PEERS)/.installed: requirements/peers.txt requirements/torch.txt | setup
	$(PYTHON) -m venv $(PEERS)
	$(INTO_PEERS) -r requirements/torch.txt
	$(INTO_PEERS) --no-build-isolation-package lrnnx -r requirements/peers.txt
	@touch $@

lock: setup ## Compile requirements/*.in to pinned files with hashes.
	cd requirements && for name in stream torch detector dev fuzz bootstrap peers; do \
		../$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url $$name.in -o $$name.txt || exit 1; \
	done

clean: ## Stop the local stack and remove what was built; keeps downloads.
	-$(BIN)/telltale down
	rm -rf $(VENV) $(PEERS) .telltale build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
