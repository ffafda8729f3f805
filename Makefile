# `make help` lists the targets.
ifdef VIRTUAL_ENV
ENV := $(VIRTUAL_ENV)
else
ENV := .venv
endif
PYTHON := $(ENV)/bin/python
STAMP := $(ENV)/.hf_sam-$(shell (pwd; cat pyproject.toml) | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help install demo test matrix cards docs check package bench clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## install the package and its tools, into the active virtual environment or .venv

$(STAMP): pyproject.toml
	@test -x $(PYTHON) || python3 -m venv $(ENV)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or \
	    sys.exit(f"hf_sam needs Python 3.11 or later, got {v[0]}.{v[1]}: remove $(ENV) and make it with one")'
	$(PYTHON) -m pip install --disable-pip-version-check -e ".[dev]"
	@rm -f $(ENV)/.hf_sam-* # another clone's, if it shares the environment
	@touch $@

demo: $(STAMP) ## fine-tune a timm network on scanned digits with SAM, about a minute on two cores
	rm -rf runs/demo
	$(PYTHON) recipes/finetune.py --output_dir runs/demo --num_train_epochs 6 --learning_rate 0.05

test: $(STAMP) ## run every test but those marked gpu, slow or external: ten minutes on two cores
	$(PYTHON) -m pytest --numprocesses 2 --dist loadfile

matrix: $(STAMP) ## train every combination beside the reference and write docs/compatibility.md
	$(PYTHON) tests/support/matrix.py

cards: $(STAMP) ## write cards, plots and the tables of the documents from model_cards/*.json
	$(PYTHON) -m hf_sam.comparing.cards model_cards/*.json
	$(PYTHON) -m hf_sam.comparing.overview model_cards/*.json --out docs/pictures/comparisons.png
	$(PYTHON) benchmarks/flatness.py
	$(PYTHON) tests/support/generated.py

docs: $(STAMP) ## build the documentation site into site/; a broken link is an error
	@$(PYTHON) -c 'import material, mkdocstrings' 2>/dev/null || \
	    $(PYTHON) -m pip install --disable-pip-version-check -e ".[docs]"
	$(PYTHON) -m mkdocs build --strict

check: $(STAMP) ## lint, format and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

package: $(STAMP) ## build the wheel and the source archive in dist/, and check them for an index
	rm -rf dist
	$(PYTHON) -m build
	$(PYTHON) -m twine check --strict dist/*

bench: $(STAMP) ## time SAM's step beside others', and the clean pass of a part: ten minutes
	$(PYTHON) benchmarks/step_cost.py
	$(PYTHON) benchmarks/clean_pass.py

clean: ## remove the environment, what was built, and all runs
	rm -rf .venv dist runs site
