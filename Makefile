# `make test` and `make demo` run from nothing; a second call installs and builds only what changed.
# PYTHON chooses the interpreter of a new environment. ITM_KERNELS_BUILD=0 leaves the extension out.
PYTHON ?= python3
ITM_KERNELS_BUILD ?= 1

VENV := .venv
BIN := $(abspath $(VENV)/bin)
CSRC := $(shell find csrc -type f)
FORMATTED := $(filter %.h %.inl %.cpp %.cu %.cuh,$(CSRC))

# torch looks for ninja on PATH.
export PATH := $(BIN):$(PATH)
export ITM_KERNELS_BUILD

.PHONY: test test-triton triton-contract triton-kernels demo lint sanitize format clean
.DELETE_ON_ERROR:

test: $(VENV)/dev $(VENV)/built
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --doctest-modules itm_kernels

demo: $(VENV)/demo $(VENV)/built
	$(BIN)/python examples/train_retrieval.py --out runs/demo

lint: $(VENV)/dev $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/mypy

# The compiled kernels once more with gcc's sanitizers, in a copy whose extension may be slow.
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer -g
sanitize: $(VENV)/dev
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	git ls-files -z | xargs -0 cp --parents -t $(SANITIZED)
	cd $(SANITIZED) && CC=gcc CXX=g++ CFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" \
		$(BIN)/python setup.py build_ext --inplace
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -k "auto or native or tiles" tests/test_ops.py tests/test_every_loss.py \
		tests/test_native.py tests/test_intra_modal_oracles.py

# Triton's kernels, interpreted and compiled for GPUs that are not here. Triton is 1 GB: it has an
# environment of its own, which leaves the other tests to run without it.
TRITON := .venv-triton
test-triton: $(TRITON)/ready
	$(MAKE) -j2 triton-contract triton-kernels  # the interpreter uses one core

triton-contract: $(TRITON)/ready
	TRITON_INTERPRET=1 $(TRITON)/bin/python -m pytest -k triton tests/test_every_loss.py tests/test_ops.py

triton-kernels: $(TRITON)/ready
	TRITON_INTERPRET=1 $(TRITON)/bin/python -m pytest -k triton tests/test_triton.py \
		tests/test_every_loss_compiled.py

$(TRITON)/ready: requirements-triton.txt requirements-dev.txt requirements-demo.txt
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install -r requirements-triton.txt
	touch $@

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean:
	rm -rf $(VENV) $(TRITON) build *.egg-info itm_kernels/*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The files $(VENV)/{demo,dev,built} are stamps: each is as new as the last time its recipe succeeded.
$(VENV)/demo: requirements-demo.txt | $(BIN)/python
	$(BIN)/python -m pip install -r requirements-demo.txt
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/demo
	$(BIN)/python -m pip install -r requirements-dev.txt
	touch $@

# The package is installed in place once; the extension is then rebuilt file by file, which pip cannot.
$(VENV)/package: pyproject.toml setup.py itm_kernels/_version.py $(VENV)/demo
	ITM_KERNELS_BUILD=0 $(BIN)/python -m pip install --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/built: $(VENV)/package $(CSRC)
	$(BIN)/python setup.py build_ext --inplace
	touch $@
