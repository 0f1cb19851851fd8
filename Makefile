SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

# Extras of the development environment, with everything that the tests start for real; engines that are missing are skipped.
EXTRAS ?= onnx,torch,arrow,sketches,kafka,flink,convert,signing,grpc,fsspec,mlflow,dev
# Extras and command of `make run`: Python is all it needs.
RUN_EXTRAS ?= onnx
RUN ?= $(BIN)/streamml run payments --demo
# More arguments for pytest, for example `make test-fast ARGS="-k session -x"`.
ARGS ?=

FAST := not slow and not nightly and not fault and not bench and not flink and not kafka
COMMA := ,
# An environment is up to date when its stamp is newer than what it was installed from.
STAMP := $(VENV)/.installed-$(subst $(COMMA),-,$(EXTRAS))
RUN_STAMP := $(VENV)/.installed-$(subst $(COMMA),-,$(RUN_EXTRAS))
SOURCES := setup.cfg pyproject.toml constraints.txt
PACKAGES := streamml operators state jobs
CHECKED := $(wildcard $(PACKAGES) tests examples)

.PHONY: help setup run test test-fast test-nightly test-beam prism bench doctest lint types format jar compose-tool clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install streamml with what development needs

run: $(RUN_STAMP) ## Run the payments job on a generated stream: no broker, no JVM
	$(RUN)

# The newest Beam has an environment of its own, for PyFlink pins an older one. Its Prism is built by the Go tool, if there
# is one: about 300 s of CPU, once. Without it the tests that need Prism are skipped.
BEAM_VERSION := 2.77.0
BEAM := .cache/beam-2.77
PRISM := .cache/prism/$(BEAM_VERSION)/prism
BEAM_TOOLS := onnx pandas scikit-learn skl2onnx pytest pytest-timeout hypothesis

# The tests of Kafka and Flink run in a process of their own: kafka-python and PyFlink leave sockets to the garbage collector,
# which warns about them at any time later, and elsewhere a warning is an error.
ENGINES := (flink or kafka or beam) and not bench
NOISE := -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning
LOG := .cache/test-engines.log
test: lint compose-tool ## Everything that CI checks: lint, types, all tests but the nightly ones
	@mkdir -p .cache; echo "The engines' tests run beside the others; what they say comes after them, from $(LOG)"
	@{ status=0; $(BIN)/pytest -m "$(ENGINES) and not nightly" $(NOISE) $(ARGS) || status=$$?; \
		$(MAKE) --no-print-directory test-beam || status=$$?; exit $$status; } >$(LOG) 2>&1 & engines=$$!; \
	trap 'kill $$engines 2>/dev/null' INT TERM; status=0; \
	$(BIN)/pytest -m "not ($(ENGINES)) and not bench and not nightly" $(ARGS) || status=$$?; \
	wait $$engines || status=$$?; cat $(LOG); exit $$status

test-beam: $(BEAM)/.installed prism ## The tests of Beam on its newest version, with Prism
	$(BEAM)/bin/pytest tests/engines/beam -m "not bench" $(ARGS)

$(BEAM)/.installed: setup.cfg pyproject.toml | $(BIN)/uv
	$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON) $(BEAM)
	$(BIN)/uv pip install --quiet --python $(BEAM)/bin/python apache-beam==$(BEAM_VERSION) -e ".[onnx,kafka]" $(BEAM_TOOLS)
	@touch $@

prism:
	@if [ -x $(PRISM) ]; then :; \
	elif command -v go >/dev/null; then \
		GOBIN=$(CURDIR)/$(dir $(PRISM)) nice -n 15 \
			go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM_VERSION) \
		|| echo "SKIP: Prism could not be built, so the tests that need it are skipped"; \
	else \
		echo "SKIP: there is no Go tool to build Prism with, so the tests that need it are skipped"; \
	fi

test-nightly: $(STAMP) ## The long tests of what changes rarely
	$(BIN)/pytest -m nightly $(NOISE) $(ARGS)

test-fast: $(STAMP) ## The tests without the slow ones, in under 90 seconds
	$(BIN)/pytest -m "$(FAST)" $(ARGS)

doctest: $(STAMP) ## Only the examples in the docstrings
	$(BIN)/pytest tests/test_doctests.py $(ARGS)

bench: $(STAMP) ## The benchmarks
	$(BIN)/pytest -m bench --timeout=0 -s $(ARGS)

lint: $(STAMP) ## Style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@$(MAKE) --no-print-directory types

# mypy does not run the import hook of an editable install, and the folders are laid out differently from
# the package that they make. So it checks a copy laid out like the installed package, and the paths in its
# report are turned back.
types: $(STAMP)
	@rm -rf .cache/types && mkdir -p .cache/types
	@cp -rp streamml .cache/types/streamml
	@for part in operators state jobs; do cp -rp $$part .cache/types/streamml/$$part; done
	cd .cache/types && ../../$(BIN)/mypy --config-file ../../setup.cfg --cache-dir ../mypy -p streamml \
		| sed -E 's#^streamml/(operators|state|jobs)/#\1/#'

# The Java half of the Flink engine. The jar is kept in the repository, so that an installation needs no JDK; a test
# compares its stamp with the sources.
JAR := streamml/flink/jars/streamml-flink.jar
JAVA := streamml/flink/java
JAVA_SOURCES := $(shell find $(JAVA) -name '*.java' -o -name pom.xml)
MVN := mvn -q -B -Dstreamml.build=$(CURDIR)/.cache/java

jar: $(JAR) ## Build and test the Java half of the Flink engine, if its sources changed

$(JAR): $(JAVA_SOURCES) | $(STAMP)
	cd $(JAVA) && { $(MVN) -o package 2>/dev/null || $(MVN) package; }
	@mkdir -p $(dir $(JAR))
	cp .cache/java/streamml-flink.jar $(JAR)
	$(BIN)/python -m streamml.flink.jars

format: $(STAMP) ## Rewrite the code in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove caches, build products and the environment
	rm -rf $(VENV) .cache .hypothesis .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find $(CHECKED) -type d -name __pycache__ -prune -exec rm -rf {} +

# docker-compose.yml is checked by the tool itself, where it is or can be had; elsewhere that test is skipped.
compose-tool:
	@if command -v docker-compose >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends docker-compose; } >/dev/null 2>&1 </dev/null \
		|| echo "SKIP: docker-compose could not be installed, so docker-compose.yml is not checked"; \
	else \
		echo "SKIP: docker-compose is not installed, so docker-compose.yml is not checked"; \
	fi

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "streamml needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

# One recipe for each environment: the extras are the part of the stamp's name after the first dash.
$(VENV)/.installed-%: $(SOURCES) | $(BIN)/uv
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e ".[$(subst -,$(COMMA),$*)]"
	@touch $@
