# The commands of development; `.ci/run` calls the tests and `make check`.
.PHONY: format check changelog test all-checks compat mutation

format: ## put code and imports in order
	ruff format .
	ruff check --fix .

check: changelog ## format, lint, types: nothing is changed
	ruff format --check .
	ruff check .
	mypy

changelog: ## there is a changelog, and it has a section for what is not released yet
	@grep -q '^## \[Unreleased\]' CHANGELOG.md || { echo "CHANGELOG.md needs a section [Unreleased]"; exit 1; }

test: ## the fast tests
	pytest -n logical --dist loadfile

all-checks: check ## everything, the slow and the browser tests too
	pytest -n logical --dist loadfile -m "not gpu"

compat: ## the tests of the seams under several releases of Ultralytics; needs a package index
	python -m tests.compat

mutation: ## mutants of the losses and the statistics, and how many the tests kill; needs `pip install "mutmut>=3"`
	python -m tests.mutation
