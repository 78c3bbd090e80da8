# `make test` and `make demo` work in a clean checkout; a second call only rebuilds what changed.
# PYTHON is the interpreter of a new environment. ITM_KERNELS_BUILD=0 does not build the extension.
PYTHON ?= python3
ITM_KERNELS_BUILD ?= 1
# 1 compiles each changed file of csrc in a few seconds, 0 all of them in a third of the time.
PRECOMPILED ?= 1

VENV := .venv
BIN := $(abspath $(VENV)/bin)
CSRC := $(shell find csrc -type f)
FORMATTED := $(filter %.h %.inl %.cpp %.cu %.cuh,$(CSRC) \
	$(wildcard tests/support/*.cpp tests/support/emulator/*))

# Python compiles the modules that it imports: less than half of what pip would compile. Without the
# compiled files, which images of containers often switch off, every import of torch takes 3 s more.
INSTALL := -m pip install --no-compile
unexport PYTHONDONTWRITEBYTECODE

# torch looks for ninja on PATH.
export PATH := $(BIN):$(PATH)
export ITM_KERNELS_BUILD

.PHONY: environments environment test test-first test-second test-triton triton-contract triton-kernels
.PHONY: test-triton-compile test-triton-semantics gpu-check cuda-check cuda-build-check demo bench bench-quick
.PHONY: bench-avx2 bench-large lint sanitize capabilities emulate-cpus races format clean
.DELETE_ON_ERROR:

# Two halves, so that a parallel make can run them at the same time. Tests of the second start
# processes of their own.
SECOND := tests/chunked tests/distributed tests/examples
test: test-first test-second
test-first: $(VENV)/dev $(VENV)/built
	$(BIN)/python -m pytest $(SECOND:%=--ignore=%)
	$(BIN)/python -m pytest --doctest-modules itm_kernels --ignore=itm_kernels/triton
test-second: $(VENV)/dev $(VENV)/built
	$(BIN)/python -m pytest $(SECOND)

demo: $(VENV)/demo $(VENV)/built
	$(BIN)/python examples/train_retrieval.py --out runs/demo --overwrite

# RESUME=--resume keeps the rows that were measured on this machine with the same versions.
BENCH := $(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds
bench: $(VENV)/bench $(VENV)/built
	$(BENCH) $(RESUME)
	$(BIN)/python -m benchmarks.scaling $(RESUME)
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.plots

# Tiny sizes: checks that every benchmark runs, that every rival's value agrees with ours, and that
# tables and plots can be written. One thread: at such sizes threads only wait for one another.
QUICK := --quick --results build/bench-quick
bench-quick: export OMP_NUM_THREADS := 1
bench-quick: $(VENV)/bench $(VENV)/built
	rm -rf build/bench-quick
	$(BENCH) -q $(QUICK)
	$(BIN)/python -m benchmarks.scaling $(QUICK)
	$(BIN)/python -m benchmarks.large $(QUICK)
	$(BIN)/python -m benchmarks.report --results build/bench-quick
	$(BIN)/python -m benchmarks.plots --results build/bench-quick

# The rows that have a goal, as on a CPU without AVX-512, in a separate file (benchmarks/results.py
# explains the three variables); then a comparison with every goal.
bench-avx2: export ATEN_CPU_CAPABILITY := avx2
bench-avx2: export MKL_ENABLE_INSTRUCTIONS := AVX2
bench-avx2: export ONEDNN_MAX_CPU_ISA := AVX2
bench-avx2: $(VENV)/bench $(VENV)/built
	$(BENCH) --goals $(RESUME)
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.goals

# 10^10 pairs, checked against fp64; takes some minutes.
bench-large: $(VENV)/bench $(VENV)/built
	$(BIN)/python -m benchmarks.large
	$(BIN)/python -m benchmarks.report

lint: $(VENV)/dev $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/mypy

# Tests the compiled kernels with gcc's sanitizers, in a copy of the tree with a slow extension.
SANITIZED := build/sanitized
# -g1: reports need line numbers and functions, but no types. -fno-sanitize-recover: the first
# report ends the process; code to continue after it is a third of an object file.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all \
	-fno-omit-frame-pointer -g1
sanitize: $(VENV)/dev
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	git ls-files -z | xargs -0 cp --parents -t $(SANITIZED)
	cd $(SANITIZED) && CC=gcc CXX=g++ CFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" \
		$(BIN)/python setup.py build_ext --inplace
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -m "native and not compiles" tests/contract/test_ops.py \
		tests/contract/test_every_loss.py tests/backends/cpu tests/ops

# Tests the compiled kernels with the loops of each lower instruction set of this CPU. The marker
# any_set excludes tests that do not depend on the instruction set (whole losses over tiles that are
# cut before any loop runs) and tests that start a process per instruction set; compiles excludes
# those of graphs.
capabilities: $(VENV)/dev $(VENV)/built
	for capability in $$(PYTHONPATH=.:tests/support $(BIN)/python -c \
			"from compiled import HERE; print(*HERE[:-1])"); do \
		ATEN_CPU_CAPABILITY=$$capability $(BIN)/python -m pytest \
			-m "native and not any_set and not compiles" || exit 1; \
	done

# Tests the loops on emulated CPUs if Debian's qemu-user is installed, with g++-aarch64-linux-gnu
# also on another architecture. qemu cannot emulate AVX-512 and AMX.
emulate-cpus: $(VENV)/dev $(VENV)/built
	PYTHONPATH=.:tests/support $(BIN)/python -W error -m tools.emulate_cpus

# Runs the parallel loops on four threads under the thread sanitizer, whose shadow memory requires
# fixed addresses (setarch -R); then checks the CUDA kernels of every dtype for races (`make test`
# checks those of fp32).
RACED := build/raced
races: $(VENV)/dev
	rm -rf $(RACED) && mkdir -p $(RACED)
	git ls-files -z | xargs -0 cp --parents -t $(RACED)
	cd $(RACED) && CC=gcc CXX=g++ CFLAGS="-fsanitize=thread -g1" LDFLAGS="-fsanitize=thread" \
		$(BIN)/python setup.py build_ext --inplace
	cd $(RACED) && PYTHONPATH=. TSAN_OPTIONS="halt_on_error=1 ignore_noninstrumented_modules=1" \
		LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" setarch -R $(BIN)/python tests/support/race.py
	ITM_ALL_RACES=1 $(BIN)/python -m pytest tests/backends/cuda/test_races.py

# Triton has a separate environment, since `make test` tests the package without it.
# TRITON_VERSION=3.6.0 uses another version, in another environment.
PINNED_TRITON := $(shell sed -n 's/^triton==//p' requirements-triton.txt)
TRITON_VERSION ?= $(PINNED_TRITON)
TRITON := .venv-triton$(if $(filter-out $(PINNED_TRITON),$(TRITON_VERSION)),-$(TRITON_VERSION))
# The interpreter of 3.6.0 uses a conversion that numpy 2.4 removed and earlier versions deprecate.
ifneq ($(filter 3.6.%,$(TRITON_VERSION)),)
TRITON_NEEDS := 'numpy<2.4'
TRITON_WARNS := -W "ignore:Conversion of an array:DeprecationWarning"
endif
# A target uses one core under a parallel make, and two when it runs alone.
GRANTED = $(findstring jobserver,$(MAKEFLAGS))

# Tests in the interpreter. `--complete`: no test may be skipped, and each half must run every
# launcher. The interpreter uses one core, so the tests are split into two halves of similar
# duration. The compiled CPU kernels are built for comparison.
INTERPRETED := TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(TRITON)/bin/python -m pytest --complete \
	-m triton $(TRITON_WARNS)
test-triton: $(TRITON)/ready
	$(MAKE) $(if $(GRANTED),,-j2 --output-sync=target) triton-contract triton-kernels

# Installs and builds everything that CI needs before its tests. Two pip processes must not install
# into the same environment at the same time; the extension is built beside them.
environments: $(VENV)/package
	$(MAKE) -j2 --output-sync=target $(VENV)/built environment
environment:
	$(MAKE) -j1 $(VENV)/dev $(VENV)/bench $(VENV)/cuda $(TRITON)/ready

CONTRACTS := tests/ops/test_ranks.py tests/ops/test_words_and_regions.py \
	tests/losses/test_from_scores_contract.py
triton-contract: $(TRITON)/ready $(VENV)/built
	$(INTERPRETED) tests/contract/test_every_loss.py tests/contract/test_ops.py \
		tests/contract/test_edge_cases.py $(CONTRACTS)

triton-kernels: $(TRITON)/ready $(VENV)/built
	$(INTERPRETED) tests/backends/triton tests/ops tests/losses \
		tests/contract/test_every_loss_compiled.py $(CONTRACTS:%=--ignore=%)

# Compiles the Triton kernels for GPUs that are not present and prints their resource use. ALL=1
# compiles every launch of the cases, the default every tile, operand and constant once. Reports
# without complaints are stored in build/triton-offline: a second run only compiles changes.
test-triton-compile: $(TRITON)/ready
	PYTHONPATH=. $(TRITON)/bin/python -m pytest --complete tests/tools/test_triton_binary.py
	PYTHONPATH=. $(TRITON)/bin/python -m tools.compile_report.triton_kernels $(if $(ALL),,--few) \
		--processes $(if $(GRANTED),1,2) $(if $(UPDATE),--update)
	PYTHONPATH=. $(TRITON)/bin/python -m tools.compile_report.gluon_kernels

# Executes the compiled IR of every Triton kernel on the CPU: about 10 minutes, and 5.5 GB for a
# separate environment. ONLY="sigmoid info_nce" selects operations; a second run resumes.
SEMANTICS := .venv-semantics
SEMANTICS_PYTHON ?= python3.12
test-triton-semantics: $(SEMANTICS)/ready
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support $(SEMANTICS)/bin/python -m tools.semantics $(ONLY)

$(SEMANTICS)/ready: requirements-semantics.txt
	@$(SEMANTICS_PYTHON) -c "import sys; sys.exit((3, 12) > sys.version_info[:2])" || { \
		echo "ttsem needs Python 3.12 or later: SEMANTICS_PYTHON=... names one" >&2; exit 1; }
	$(SEMANTICS_PYTHON) -m venv $(SEMANTICS)
	$(SEMANTICS)/bin/python $(INSTALL) -r requirements-semantics.txt
	touch $@

# Predicts the cost of every loss on a GPU by counting on meta tensors, and compares it with the
# committed sheet and eager PyTorch. UPDATE=1 writes the sheet if no check fails, UPDATE=grow
# in any case. ALL=1 recomputes every size and precision, ONLY=imc one loss. MEASURED=file adds
# measured rows.
.PHONY: cost-sheet
cost-sheet: $(TRITON)/ready
	PYTHONPATH=. $(TRITON)/bin/python -m pytest --complete tests/tools/test_cost_sheet_launches.py
	PYTHONPATH=.:tests/support OMP_NUM_THREADS=1 $(TRITON)/bin/python -m benchmarks.cost_sheet \
		$(if $(ONLY),--only "$(ONLY)") $(if $(ALL),--all) $(if $(UPDATE),--update) \
		$(if $(filter grow,$(UPDATE)),--grow) $(if $(MEASURED),--compare $(MEASURED))

# Triton's environment also uses the packages of $(VENV), so torch is installed only once.
SITE_PACKAGES := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
$(TRITON)/ready: requirements-triton.txt $(VENV)/dev
	$(PYTHON) -m venv --clear $(TRITON)
	$(BIN)/python $(SITE_PACKAGES) > "$$($(TRITON)/bin/python $(SITE_PACKAGES))/packages-of-dev.pth"
	$(TRITON)/bin/python $(INSTALL) triton==$(TRITON_VERSION) $(TRITON_NEEDS)
	touch $@

# Compiles the CUDA kernels with nvcc and checks registers, shared memory, spills and the machine
# code of l1. Without nvcc it is skipped with a message, unless ITM_KERNELS_CUDA=1.
cuda-check: $(VENV)/cuda
	$(BIN)/python -m tools.compile_report.cuda_kernels $(if $(UPDATE),--update)

$(VENV)/cuda: requirements-cuda.txt $(VENV)/dev
	$(BIN)/python $(INSTALL) -r requirements-cuda.txt
	touch $@

# Builds and imports the whole extension with its CUDA kernels, without a GPU. It has a separate
# environment, since the CUDA build of torch takes several gigabytes.
CUDA := .venv-cuda
CUDA_BUILT := build/cuda-build-check
cuda-build-check: $(CUDA)/ready
	rm -rf $(CUDA_BUILT) && mkdir -p $(CUDA_BUILT)
	git ls-files -z | xargs -0 cp --parents -t $(CUDA_BUILT)
	cd $(CUDA_BUILT) && PATH="$(abspath $(CUDA)/bin):$$PATH" ITM_KERNELS_BUILD=1 ITM_KERNELS_CUDA=1 \
		$(abspath $(CUDA)/bin/python) setup.py build_ext --inplace
	cd $(CUDA_BUILT) && $(abspath $(CUDA)/bin/python) -m itm_kernels info
	cd $(CUDA_BUILT) && $(abspath $(CUDA)/bin/python) -c "from itm_kernels import backends; \
		assert backends.NATIVE_KERNELS['cuda'], backends.NOT_BUILT"

$(CUDA)/ready: requirements-cuda-build.txt
	$(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/python $(INSTALL) -r requirements-cuda-build.txt
	touch $@

# Runs the checks that need a GPU with the installed interpreter, torch and compiler; it installs
# nothing. STEPS selects steps, by default all; the same command resumes where it stopped.
OUT ?= runs/gpu-check
gpu-check:
	$(PYTHON) -m tools.gpu_check --out $(OUT) $(if $(STEPS),--steps $(STEPS)) $(GPU_OPTIONS)

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean:
	rm -rf $(VENV) .venv-triton* $(SEMANTICS) $(CUDA) build *.egg-info itm_kernels/*.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The files $(VENV)/{demo,dev,bench,built} are stamps: each is touched when its recipe succeeds.
$(VENV)/demo: requirements-demo.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) -r requirements-demo.txt
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/demo
	$(BIN)/python $(INSTALL) -r requirements-dev.txt
	touch $@

# Two are installed without their dependencies. open_clip: torchvision has no CPU build, and the loss
# module needs none. late-interaction-kernels: Triton, which it does not need on a CPU. Rivals that
# cannot be installed are skipped; the tables show them as missing.
$(VENV)/bench: requirements-bench.txt $(VENV)/dev
	$(BIN)/python $(INSTALL) -r requirements-bench.txt || \
		sed '/^[-#]/d' requirements-bench.txt | xargs -d '\n' -n 1 $(BIN)/python $(INSTALL) || true
	-$(BIN)/python $(INSTALL) --no-deps open_clip_torch==3.3.0
	-$(BIN)/python $(INSTALL) --no-deps late-interaction-kernels==0.4.5
	touch $@

# pip installs the package in place once; setup.py then rebuilds the extension file by file.
$(VENV)/package: pyproject.toml setup.py itm_kernels/_version.py $(VENV)/demo
	ITM_KERNELS_BUILD=0 $(BIN)/python $(INSTALL) --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/built: $(VENV)/package $(CSRC)
	ITM_KERNELS_PRECOMPILED=$(PRECOMPILED) $(BIN)/python setup.py build_ext --inplace
	touch $@
