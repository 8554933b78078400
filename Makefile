# Each target is enough by itself on a machine with Python 3.10 to 3.13. PYTHON=… names the interpreter: it is used as it
# stands if it has torch and Detectron2, and else .venv is made from it.
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
	$(PY) -m pytest
