# One command each; the first one sets up .venv, later ones start at once.
.DEFAULT_GOAL := help
.PHONY: help demo lab test bench lint clean
bin := .venv/bin
# Cores are often shared: threads that wait for one another sleep instead of spinning.
export OMP_WAIT_POLICY ?= passive
notebook ?= notebooks/00_first_slide.ipynb
# For instance: make bench args="--json rows.jsonl"
args ?=
# Jobs that tests begin stay out of the list of yours.
pytest = DHLAB_JOBS=$${TMPDIR:-/tmp}/dhlab-test-jobs $(bin)/python -m pytest -n auto --dist loadfile \
  --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with=notebooks/sanitize.cfg

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

.venv/.ready-%: binder/install.sh binder/constraints.txt pyproject.toml $(wildcard extensions/*/package.json extensions/*/src/* dhlab/kernels/_cpu/*.[ch]) binder/build_kernels.py
	@bash binder/install.sh $*

demo: .venv/.ready-demo ## from a slide to a result, in a minute
	@$(bin)/dhlab demo

lab: .venv/.ready-lab ## open the first notebook in JupyterLab
	@$(bin)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(notebook)

test: .venv/.ready-test ## every test and every notebook
	@echo "tests:     $$(find tests -name 'test_*.py' | wc -l) files, without a GPU the kernels run in Triton's interpreter"
	@echo "notebooks: $(words $(wildcard notebooks/*.ipynb)) run cell by cell, stored results compared"
	$(pytest) tests $(wildcard notebooks/*.ipynb)

bench: .venv/.ready-dev ## our times beside those of our peers
	@for file in tests/benchmarks/bench_*.py; do [ ! -e "$$file" ] || $(bin)/python "$$file" $(args) || exit 1; done

lint: .venv/.ready-test ## style, types, layers, spelling
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy
	$(bin)/lint-imports --no-logo
	$(bin)/codespell

clean: ## remove what the other commands made; the environment .venv stays
	rm -rf build dist demo-output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
