# Everything a person or CI does with this checkout. Needs python3.11+ (with venv), git and make; nothing else.
# The environment is made once from the hash-pinned lists in requirements/ and made again when those change.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
# Workers for the tests: two is what the smallest CI machines have.
WORKERS ?= 2
SOURCES := operator tests example-repo

.DEFAULT_GOAL := help
.PHONY: help images demo test gitea cluster cluster-build cluster-down test-cluster test-envoy test-long check lock wheel clean fuzz fuzz-engines soak compiled test-compiled bench-verdict bench-safety bench-push bench-swap bench-proxy bench-sidecar bench-review bench-startup bench-kubernetes

help: ## Show this list.
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

PLATFORM ?= local
DEMO_local := example-repo/demo.py
DEMO_kubernetes := example-repo/demo_kubernetes.py
demo: $(VENV)/.stamp-$(if $(filter kubernetes,$(PLATFORM))$(filter envoy,$(ENGINE)),dev,demo) ## The story, under traffic. PLATFORM=kubernetes: on a cluster. ENGINE=envoy: over Envoys. KEEP=1 leaves it.
	@KEEP="$(KEEP)" ENGINE="$(ENGINE)" $(BIN)/python $(or $(DEMO_$(PLATFORM)),$(error PLATFORM is local or kubernetes))

test: $(VENV)/.stamp-dev ## Run all tests. ARGS='...' goes to pytest.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m 'not long' $(ARGS)

gitea: $(VENV)/.stamp-dev ## Build a real forge for tests of reviews (Go, a C compiler; minutes once).
	@$(BIN)/python tests/gitea

cluster: $(VENV)/.stamp-dev ## Start a real Kubernetes here (Linux, root, Go; minutes once); prints KUBECONFIG.
	@$(BIN)/python tests/cluster up

cluster-build: $(VENV)/.stamp-dev ## Build its programs and images, start nothing.
	@$(BIN)/python tests/cluster build

cluster-down: $(VENV)/.stamp-dev ## Stop it and remove every trace.
	@$(BIN)/python tests/cluster down

test-cluster: $(VENV)/.stamp-dev ## The long scenarios on KUBECONFIG or on that cluster.
	$(BIN)/python -m pytest -m long tests/e2e/kubernetes $(ARGS)

test-envoy: $(VENV)/.stamp-dev ## Rollouts and conformance over Envoys.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m long tests/e2e/envoy tests/conformance/envoy $(ARGS)

test-long: $(VENV)/.stamp-dev ## The long scenarios on this machine alone: the operator killed in each phase.
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m long tests/e2e/operator $(ARGS)

check: $(VENV)/.stamp-dev ## Format, lint, types, layers, schema drift.
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports
	$(BIN)/backstay schemas --check schemas --crds bootstrap/crds

fuzz: $(VENV)/.stamp-dev ## Hostile bytes at parsers and configs. FUZZ=20000 examples, or TARGET=requests with atheris.
	@$(BIN)/python tests/fuzz $(TARGET) $(if $(SECONDS),--seconds $(SECONDS))

fuzz-engines: $(VENV)/.stamp-dev ## Random rules and requests through both engines. SECONDS=600.
	ALIKE_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest -m long tests/e2e/envoy/test_alike.py

compiled: $(VENV)/.stamp-dev ## The sidecar's hot path as machine code in build/compiled/ (mypyc, a C compiler).
	@$(BIN)/python bootstrap/images/compile.py

test-compiled: compiled ## Conformance and the engine's tests on that machine code.
	PYTHONPATH=build/compiled $(BIN)/python -m pytest tests/conformance/http tests/conformance/traffic tests/conformance/security tests/e2e/engine tests/e2e/sidecar tests/e2e/redirect $(ARGS)

soak: $(VENV)/.stamp-dev ## Half an hour of traffic, attacks and reloads: memory, descriptors, tasks. SHORT=1: two minutes; MINUTES=5.
	@SHORT="$(SHORT)" MINUTES="$(MINUTES)" $(BIN)/python tests/bench/soak.py

bench-verdict: $(VENV)/.stamp-dev ## False alarms and harm against the information limit.
	@$(BIN)/python tests/bench/verdict.py

bench-safety: $(VENV)/.stamp-dev ## Bad and good commits under traffic. QUICK=1 for five minutes.
	@QUICK="$(QUICK)" $(BIN)/python tests/bench/safety.py

bench-push: $(VENV)/.stamp-dev ## From push to the last ack, and bytes per proxy.
	@$(BIN)/python tests/bench/push.py

bench-swap: $(VENV)/.stamp-dev ## A change a second under traffic: failed requests.
	@$(BIN)/python tests/bench/swap.py

bench-proxy: $(VENV)/.stamp-dev ## Requests per core, latency, memory against Envoy. QUICK=1, SMALL=1 (200m CPU), INTERPRETED=1.
	@QUICK="$(QUICK)" SMALL="$(SMALL)" INTERPRETED="$(INTERPRETED)" $(BIN)/python tests/bench/proxy.py

bench-sidecar: $(VENV)/.stamp-dev ## What one sidecar costs: start, memory, a swap with 1,000 routes.
	@$(BIN)/python tests/bench/sidecar.py

bench-review: $(VENV)/.stamp-dev ## Evaluation, review and replay in a mesh of 1,000 routes. QUICK=1 for a tenth.
	@QUICK="$(QUICK)" $(BIN)/python tests/bench/review.py

bench-kubernetes: $(VENV)/.stamp-dev ## What the operator costs in a cluster. QUICK=1 for a tenth.
	@QUICK="$(QUICK)" $(BIN)/python tests/bench/on_kubernetes.py

bench-startup: $(VENV)/.stamp-dev ## Start-up of the command line over bare Python.
	@$(BIN)/python tests/bench/startup.py

lock: $(VENV)/.stamp-dev ## Write requirements/ anew from pyproject.toml. UPGRADE=1 takes newer versions.
	@rm -f $(if $(UPGRADE),requirements/dev.txt requirements/demo.txt requirements/operator.txt requirements/sidecar.txt requirements/envoy.txt requirements/sample.txt requirements/pip.txt)
	$(COMPILE) --extra dev -o requirements/dev.txt
	$(COMPILE) --extra demo --extra build -c requirements/dev.txt -o requirements/demo.txt
	$(COMPILE) --extra kubernetes -c requirements/dev.txt -o requirements/operator.txt
	$(COMPILE_LIST) requirements/sidecar.in -c requirements/dev.txt -o requirements/sidecar.txt
	$(COMPILE_LIST) requirements/envoy.in -c requirements/dev.txt -o requirements/envoy.txt
	$(COMPILE_LIST) requirements/sample.in -c requirements/dev.txt -o requirements/sample.txt
	$(COMPILE_LIST) requirements/pip.in -o requirements/pip.txt

COMPILE_LIST = $(BIN)/python -m uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
	--python-version 3.11
COMPILE = $(COMPILE_LIST) pyproject.toml

wheel: $(VENV)/.stamp-dev ## Build the wheel into dist/.
	$(BIN)/python -m build --no-isolation --wheel

images: $(VENV)/.stamp-dev ## Prepare build/images/: what `docker build` needs for operator and sidecar. ENVOY=1: with Envoy in it.
	@$(BIN)/python bootstrap/images/prepare.py $(if $(ENVOY),--envoy)

clean: ## Remove everything that can be made again.
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache operator/*.egg-info

# --- environment -------------------------------------------------------------------------------------------------------

PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input

$(BIN)/python:
	@sh .ci/make-venv $(VENV)

# Building Backstay itself needs no download: setuptools is in the list. Newer stamps are made after older ones only.
$(VENV)/.stamp-demo: requirements/demo.txt pyproject.toml | $(BIN)/python
	@test -n "$$(find $(VENV)/.stamp-dev -newer requirements/dev.txt 2>/dev/null)" \
		|| $(PIP) install --quiet --require-hashes -r requirements/demo.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.stamp-dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
