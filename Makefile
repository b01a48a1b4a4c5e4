# Each target sets up what it needs first; that takes no time when it is done.
.PHONY: help setup demo test faults test-page test-bare lint bench bench-gpu clean
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
# ansible-lint calls ansible-playbook by name, and hosts see this project's own versions only.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Ansible refuses to start in a locale that isn't UTF-8, or that isn't installed, as it often isn't
# where ssh brought the name along.
ifeq ($(shell uname -s),Linux)
export LC_ALL := C.UTF-8
endif
# Nothing that runs here looks for a newer version of itself.
export ANSIBLE_LINT_SKIP_SCHEMA_UPDATE := 1

# Any output is a failure: vermin ends with 0 when one name in a file looks like Python 2 to it, and
# then says nothing of what else is in there. Every variable called `file` looks so.
VERMIN := vermin --quiet --no-tips --violations --exclude file

help: ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf 'make %-9s %s\n' "$$name" "$$text"; done

setup: ## make .venv and install what is missing
	@sh tools/setup.sh

demo: setup ## train four adapters on this machine through a real sshd, and bring them home
	@$(PYTHON) tools/demo.py

test: setup lint ## run the linters, then every test
	@$(PYTHON) -m pytest --numprocesses auto --dist worksteal --durations 30

faults: setup ## break everything around a stage, and see it end in the right state
	@$(PYTHON) -m pytest -m 'not bare' --numprocesses 2 tests/integration/faults

test-page: ## open report.html in a real browser; screenshots are in build/page
	@sh tools/setup.sh page
	@$(PYTHON) -m pytest -m page tests/page

test-bare: setup ## as root: from a bare machine (debootstrap) to a trained stage
	@$(PYTHON) -m pytest -m bare tests/bare

lint: setup ## ruff, mypy, vermin, yamllint, ansible-lint
	@echo 'lint: ruff check'
	@ruff check --quiet .
	@echo 'lint: ruff format'
	@ruff format --check --quiet .
	@echo 'lint: mypy'
	@mypy --no-error-summary
	@echo 'lint: vermin (Python 3.9 on the GPU host, 3.10 in the training)'
	@! $(VERMIN) -t=3.9- plugins/module_utils plugins/modules 2>&1 | grep .
	@! $(VERMIN) -t=3.10- training 2>&1 | grep .
	@echo 'lint: yamllint'
	@yamllint --strict .
	@echo 'lint: ansible-lint'
	@ansible-lint --offline -q

bench: ## measure what the README claims
	@sh tools/setup.sh bench
	@$(PYTHON) tests/benchmarks/run.py

bench-gpu: setup ## on a machine with a CUDA GPU of 80 GB: training and evaluation, in ten minutes
	@$(PYTHON) tests/benchmarks/gpu.py

clean: ## end the demo's sshd, remove build/ and every tool's cache; .venv and outputs/ stay
	@if [ -d build/demo/ssh ]; then python3 tools/sshd_host.py stop build/demo/ssh; fi
	@rm -rf build .ansible .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
