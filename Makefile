# Every target does its own set-up: Python packages into .venv, Go binaries into $(DUET_CACHE), default ~/.cache/duet.
.DEFAULT_GOAL := help
SHELL := /bin/sh
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)/dev
# Many containers set it, and then each start of each process compiles all that it imports.
export PYTHONDONTWRITEBYTECODE :=
python := .venv/bin/python

ENGINE ?=
TRACE ?=
SPEED ?=
MINUTES ?=
DYNAMO ?=
demo_options := $(if $(ENGINE),--engine $(ENGINE)) $(if $(TRACE),--trace "$(TRACE)") $(if $(SPEED),--speed $(SPEED)) $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: help setup binaries engine-env engine-full demo test test-fast lint format crds bench-perf bench-papers bench-planners bench-simulator bench-plumbing bench-gateway bench-step-replay fuzz-gateway clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup:  ## .venv with everything that Python needs
	@dev/setup.sh

binaries: setup  ## the Kubernetes control plane, kubectl and Helm, built once (five to eight minutes)
	@$(python) -m duet_dev build

engine-env: setup  ## the real SGLang on the CPU with tiny models, made once (10 GB)
	@$(python) -m duet_dev engine-env

demo: binaries  ## a local cluster, a DuetDeployment, a trace, a report (ENGINE=sglang TRACE=file SPEED=n MINUTES=n)
	@$(python) -m duet_dev.demo $(demo_options)

# Without the real SGLang (10 GB): make test WITHOUT_ENGINE=1
test: binaries $(if $(WITHOUT_ENGINE),,engine-env)  ## all tests, in lanes side by side
	@DUET_REQUIRE_CLUSTER=1 $(if $(WITHOUT_ENGINE),,DUET_REQUIRE_ENGINE=1) \
		$(python) -m duet_dev.lanes --durations 15 -m "not engine_full"

test-fast: setup  ## the tests of the daily round, without a control plane: at most three minutes
	@$(python) -m duet_dev.lanes --lane processes --lane rest -m "not slow"

engine-full: engine-env  ## every test on the real SGLang, with a soak -> docs/results/engine.md (an hour; DUET_SOAK_MINUTES=n)
	@DUET_REQUIRE_ENGINE=1 DUET_WRITE_RESULTS=1 $(python) -m pytest tests/engine --durations 15

lint: setup  ## style, types and import contracts
	@ruff check . && ruff format --check . && mypy && lint-imports

format: setup  ## rewrite to the project's style
	@ruff check --fix . ; ruff format .

crds: setup  ## regenerate crds/, the chart's copy and the reference pages from the models
	@$(python) -m duet_operator.api.crd > crds/duetserve.io_duetdeployments.yaml
	@cp crds/duetserve.io_duetdeployments.yaml charts/duet/crds/
	@$(python) -m duet_operator.api.reference > docs/api-reference.md
	@$(python) -m duet_operator.settings_reference > docs/operator-settings.md

bench-perf: setup  ## predicted against measured step times -> docs/results/perf.md (needs ../shared/perfdata)
	@$(python) tests/bench/bench_perf.py

bench-papers: setup  ## the papers' claims in the simulator -> docs/results/papers.md (under an hour, resumable)
	@$(python) tests/bench/bench_papers.py

bench-simulator: setup  ## requests a second of the simulator -> docs/results/simulator.md (DYNAMO=venv: beside its replay)
	@$(python) tests/bench/bench_simulator.py --requests 6000
	@$(if $(DYNAMO),$(python) tests/bench/bench_simulator_peer.py --python $(DYNAMO)/bin/python)

bench-plumbing: setup  ## the simulator beside real processes in real time -> docs/results/plumbing.md (three minutes)
	@$(python) tests/bench/bench_plumbing.py

bench-gateway: setup  ## the gateway against sglang-router and smg -> docs/results/gateway.md (needs go, a package index)
	@$(python) tests/bench/bench_gateway.py

fuzz-gateway: setup  ## 100,000 hostile requests against a gateway -> docs/results/fuzz.md (five to ten minutes)
	@$(python) tests/bench/fuzz_gateway.py

bench-planners: setup  ## planners on real traces -> docs/results/planners.md (needs ../shared/traces; ten minutes, resumable)
	@$(python) tests/bench/bench_planners.py

bench-step-replay: engine-env  ## the simulator against the real SGLang -> docs/results/step_replay.md (five minutes)
	@$(python) tests/bench/bench_step_replay.py

clean:  ## remove .venv and reports; the cache of binaries stays
	@rm -rf .venv demo-report
