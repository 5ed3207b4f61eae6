# A few lines over the scripts. Each target creates .venv and installs what is missing.
VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
INSTALLED = $(VENV)/.installed

.PHONY: compare samples test test-all lint

compare: $(INSTALLED)
	PYTHON=$(VENV)/bin/python bash results/compare.sh --data shapes --preset quick --name quick $(if $(FRESH),--fresh)

samples: $(INSTALLED)
	$(VENV)/bin/python results/sample_all.py

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/pip install --quiet ruff mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy results gans denoising-diffusion-gan improved-diffusion/improved_diffusion

$(INSTALLED): requirements.txt results/pyproject.toml improved-diffusion/improved_diffusion/pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: error: Python 3.11 or newer is needed; name it with PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: error: $(PYTHON) cannot create $(VENV); on Debian: apt install python3-venv" >&2; exit 2; }
	$(VENV)/bin/pip install --disable-pip-version-check -r requirements.txt
	command -v mpiexec >/dev/null || $(VENV)/bin/pip install --disable-pip-version-check mpich
	touch $@
