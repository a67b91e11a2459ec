# Everyday commands. `make serve` and `make test` need only Python 3.11+, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Hashes are checked, and nothing is installed that the lock does not name.
PIP_LOCKED := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps

.PHONY: help install serve test test-slow bench load check format lock proto dashboards clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Two levels of one environment: what serving and building need, and all of it.
$(VENV)/.serve: deploy/lock/serve.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the gateway and the build step into $(VENV) (about a minute) ..."
	@$(PIP_LOCKED) --require-hashes -r deploy/lock/serve.txt
	@$(PIP_LOCKED) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: deploy/lock/dev.txt $(VENV)/.serve
	@echo "Installing the developer tools into $(VENV) ..."
	@$(PIP_LOCKED) --require-hashes -r deploy/lock/dev.txt
	@touch $@

install: $(VENV)/.dev ## Prepare .venv with everything a developer needs

serve: $(VENV)/.serve ## Start the gateway (builds the demo model first if there is none)
	@$(BIN)/blockserve serve $(ARGS)

test: $(VENV)/.dev ## Run the default test suite
	@$(BIN)/python -m pytest $(ARGS)

test-slow: $(VENV)/.dev ## Run the full-size build and the other slow tests
	@$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(VENV)/.dev ## Run the benchmarks, into bench_results/ (ARGS=--quick for a first impression)
	@$(BIN)/python -m loadtest $(ARGS)

load: $(VENV)/.dev ## Load a gateway with Locust and write a report (ARGS="--url http://…")
	@$(BIN)/blockserve bench $(ARGS)

check: $(VENV)/.dev ## Lint, check the format and the types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.dev ## Format the code and mend what lint can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: $(VENV)/.dev ## Generate proto/*_pb2.py from the .proto files
	@$(BIN)/python -m proto.generate

dashboards: $(VENV)/.dev ## Generate Grafana's dashboards from deploy/grafana/boards
	@$(BIN)/python -m deploy.grafana.boards

LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --quiet \
	--generate-hashes --no-annotate --no-header --no-emit-index-url
lock: ## Pin every dependency anew (needs uv on the PATH)
	$(LOCK) --upgrade --extra dev --group install -o deploy/lock/dev.txt
	$(LOCK) --extra build --group install -c deploy/lock/dev.txt -o deploy/lock/serve.txt
	$(LOCK) --extra tracing --group install -c deploy/lock/dev.txt -o deploy/lock/gateway.txt
	$(LOCK) --extra loadtest --group install -c deploy/lock/dev.txt -o deploy/lock/loadtest.txt

clean: ## Remove the environment and caches (the model repository stays)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
