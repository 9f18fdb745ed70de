# `make demo` and `make test` set up all they need: python3 with pip and venv is enough, and a C++ compiler for speed.
# `make native-test` needs g++ with its sanitizers, `make release-test` any g++; cmake is fetched where there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc)

# Where a container forbids it, each process that a test starts would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

CMAKE := $(or $(shell command -v cmake),$(BIN)/cmake)

.PHONY: demo test test-slow test-long native-test release-test aarch64-test device-test check lint types imports house docs wheels wheels-test format clean

demo: $(VENV)/demo.stamp
	$(BIN)/weightpager demo --out weightpager-demo.html

# Each process begins with a stretch of the tests; one that has done its own takes half of what another has left.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# With MARKERS= the slow ones, too: the unit tests keep the other cores busy while the demo takes minutes of one.
MARKERS ?= -m "not slow and not long"

test: $(VENV)/dev.stamp
	$(PYTEST) $(MARKERS) --durations 12

# Random tests draw in full here, and less often where tests are left out.
test-slow: $(VENV)/dev.stamp
	$(PYTEST) -m slow --durations 12

# One process: clusters would take each other's cores.
test-long: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m long --durations 12

# Without use-after-scope: it triples the time to compile kernels that are unrolled through lambdas, as wide tiles do.
SANITIZERS := -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
	-fno-sanitize-address-use-after-scope

# The kernels that take longest to compile are of no use here where the processor lacks their instructions.
LACKING = $(if $(shell grep -m 1 -o avx512_bf16 /proc/cpuinfo),,-DHAVE_AVX512_BF16=OFF)

# With emulated tiles, as no sanitizer sees what AMX reads.
native-test: | $(CMAKE)
	$(CMAKE) -S . -B build/native-test -DWEIGHTPAGER_NATIVE_TESTS=ON -DWEIGHTPAGER_EMULATED_TILES=ON \
		-DWEIGHTPAGER_FEW_WIDTHS=ON $(LACKING) \
		-DWEIGHTPAGER_OPTIMISATION=-O1 -DCMAKE_CXX_FLAGS="$(SANITIZERS)"
	$(CMAKE) --build build/native-test --parallel $(JOBS)
	build/native-test/native_tests --cases 500
	tests/native/loads.sh -fsanitize=address,undefined -fno-sanitize-recover=all
	tests/native/loads.sh -fsanitize=thread
	tests/native/pool.sh -fsanitize=address,undefined -fno-sanitize-recover=all
	tests/native/pool.sh -fsanitize=thread

# As they are installed. Tile instructions are carried out in software on a processor that has none.
release-test: | $(CMAKE)
	$(CMAKE) -S . -B build/release-test -DWEIGHTPAGER_NATIVE_TESTS=ON
	$(CMAKE) --build build/release-test --parallel $(JOBS)
	build/release-test/native_tests --cases 2000

# On an install without torch.
device-test: $(VENV)/dev.stamp
	tests/device/run.sh $(BIN)/python

aarch64-test: | $(CMAKE)
	CMAKE=$(CMAKE) JOBS=$(JOBS) tests/native/aarch64.sh

check: lint types imports house test

# Where it gets crowded: files a room, lines a file and a function. Nothing here fails.
house: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.house

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/dev.stamp
	$(BIN)/mypy

imports: $(VENV)/dev.stamp
	$(BIN)/lint-imports

# The site, in build/site; a link that leads nowhere fails it.
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The source distribution and wheels for both machines, in dist. The last Python's serve later ones too.
PYTHONS ?= python3.10 python3.11 python3.12
wheels: $(VENV)/wheels.stamp
	$(BIN)/python -m release.wheels $(PYTHONS:%=--python %)

# Those in dist as devices install them: no compiler, no torch; no AVX2 and aarch64 emulated; a server in an image.
wheels-test: $(VENV)/dev.stamp
	release/try.sh $(BIN)/python $(PYTHONS)

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# The sources of the compiled kernels and the project's metadata: when they change, install again.
BUILD := pyproject.toml CMakeLists.txt $(wildcard csrc/* csrc/linear/* csrc/linear/kernels/* csrc/load/* csrc/operators/* csrc/operators/vector/* csrc/program/* csrc/rows/* csrc/threads/* csrc/training/*)

# A part of what is installed is ever imported, and that is compiled then: compiling all takes as long as unpacking it.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade "pip>=25.1"

$(BIN)/cmake: | $(VENV)/bin/python
	$(INSTALL) cmake

# With progress: who tries the demo waits for torch, and may want to serve the bundle afterwards.
$(VENV)/demo.stamp: $(BUILD) | $(VENV)/bin/python
	$(BIN)/python -m pip install --no-compile --editable ".[demo,serve]"
	touch $@

$(VENV)/dev.stamp: $(BUILD) | $(VENV)/bin/python
	$(INSTALL) --editable ".[dev]"
	touch $@

$(VENV)/wheels.stamp: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) --group wheels
	touch $@

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) --group docs
	touch $@
