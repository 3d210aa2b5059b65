# Two commands do everything, on a fresh machine: `make demo` and `make test`.
# Both make a virtual environment in .venv with the versions of constraints.txt. To use one of your own:
#   make test VENV=/path/to/venv          (it is installed into)
#   make test PYTHON=python3.12           (which Python makes it)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Threads that wait by spinning make a small model up to ninety times slower where other processes need the cores
# too; see "Limits" in the README.
export GOMP_SPINCOUNT ?= 1000

# With which neuraloperator `make neuralop` tests: a requirement, or a folder or an archive of its sources.
NEURALOP ?= neuraloperator

.PHONY: demo test check neuralop install bench benchmark clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11: give a newer one, make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a minute or two, more on a slow network"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# The Well's reader pins an fsspec of 2024; all else that it needs is there.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps the_well
	@# Kernels for GPUs, which are tested without one, apart from [dev]: Triton is for Linux alone.
	test "$$(uname)" != Linux || \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps triton
	@# The models whose weights `from_swin_v2` reads, apart: torchvision's own libraries are for CUDA.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/beside \
	  torchvision timm
	touch $@

# Fields at three resolutions, MANO and FNO trained at the coarsest, judged at all: demo/report.html
demo: $(INSTALLED)
	$(BIN)/mano-op demo demo --overwrite

# All that CI runs.
test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What touches neuraloperator, with another one than the pinned; the newest release, if none is given:
#   make neuralop NEURALOP=neuraloperator==2.0.0
#   make neuralop NEURALOP=../neuraloperator             (a checkout; one in this folder is ./neuraloperator)
#   make neuralop NEURALOP=downloads/neuraloperator.zip
# pip builds a wheel of sources. It fetches setuptools for that, and nothing that neuraloperator depends on.
neuralop: $(INSTALLED)
	rm -rf build/neuraloperator
	$(BIN)/python -m pip install --quiet --no-deps --target build/neuraloperator '$(NEURALOP)'
	PYTHONPATH='$(CURDIR)/build/neuraloperator' $(BIN)/python -m pytest -n 2 tests/test_neuralop.py tests/test_convolution.py \
	  tests/test_processor.py tests/test_objective.py tests/test_physics.py tests/test_train.py

# How fast MANO is beside other models, and beside what it was on this machine; ten minutes. See docs/performance.md.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/speed.py --compare

# The numbers of the README, from neuraloperator's files; half an hour on two cores. See benchmarks/README.md.
#   make benchmark DATA=FOLDER_WITH_THE_PT_FILES
benchmark: $(INSTALLED)
	@test -n "$(DATA)" || { echo "give the folder of darcy_train_16.pt: make benchmark DATA=..."; exit 1; }
	$(BIN)/python benchmarks/transfer.py small --data "$(DATA)"

# What was made here; a virtual environment of your own (VENV=...) stays.
clean:
	rm -rf demo .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
