.DEFAULT_GOAL := help
.PHONY: help setup demo demo-portrait up test check fix bench clean
SHELL := /bin/bash
VENV := .venv/bin

help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## make .venv with everything pinned; does nothing when it is up to date
	@scripts/setup

demo: setup ## start everything, draw one picture into out/, stop
	@$(VENV)/daguerre demo

demo-portrait: setup ## photo check, training, portrait over HTTP, of two avatars: out/avatars.png
	@mkdir -p out
	$(VENV)/python -m benchmarks.portrait_avatars --identities 2 --sheet out/avatars.png

up: setup ## serve until Ctrl-C
	@$(VENV)/daguerre up

test: setup ## all that CI runs: checks, then every test
	@$(MAKE) --no-print-directory check
	OMP_NUM_THREADS=1 $(VENV)/pytest tests/contract tests/clients tests/serve
	$(VENV)/pytest tests/faults # Ray keeps the first cluster's token for the life of a process

check: setup ## format, lint, types, layers, fast tests
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports
	OMP_NUM_THREADS=1 $(VENV)/pytest -q -n auto --maxprocesses 8 tests/unit

fix: setup ## format and mend what can be mended
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

bench: setup ## the ratios of benchmarks/RESULTS.md, of ten minutes
	$(VENV)/python -m benchmarks

clean: ## forget pictures and tasks of the demo (not .venv)
	rm -rf out data build dist
