# `make demo` and `make test` set up .venv first, on any machine with Python 3.10 to 3.13.
# With PYTHON=/path/to/python they use that interpreter if it has torch and Detectron2, or else create .venv from it.
SETUP = $(or $(PYTHON),python3) tools/setup_env.py $(if $(PYTHON),--named)
PY = $(shell $(SETUP) --which)

.PHONY: env demo test

env:
	@$(SETUP)

demo: env
	$(PY) tools/demo.py

test: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal
