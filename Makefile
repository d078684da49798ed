# `make demo` and `make test` work as the first command on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported, and kept; pip would take two of its four minutes to compile 20,000.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo bench bench-tables compat test lint types docs unit chromium clang screenshots wheels clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fadeup needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[all,dev]'
	touch $@

demo: setup
	$(BIN)/fadeup compare --name demo --resume

# On a quiet machine, about ten minutes on two cores: measures everything of docs/benchmarks.md and writes it there.
bench: setup
	$(BIN)/fadeup bench --targets --curves --json benchmarks/results/bench.json --figure docs/images/benchmarks.png
	$(BIN)/fadeup bench --networks --seconds 15 --json benchmarks/results/networks.json
	$(MAKE) bench-tables

bench-tables: setup
	$(BIN)/fadeup bench --tables benchmarks/results/bench.json --into docs/benchmarks.md
	$(BIN)/fadeup bench --tables benchmarks/results/networks.json --into docs/benchmarks.md

# What does not fill two cores by itself runs side by side.
test:
	$(MAKE) --jobs 2 setup chromium clang
	$(MAKE) --jobs 2 lint types docs
	$(MAKE) unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

# The page is tested in a real browser. Without one, and without the right to install it, these tests are skipped.
chromium:
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } \
		|| echo "chromium is not installed: tests of the page are skipped"

# The kernels are fuzzed with libFuzzer and its sanitizers, which clang has.
clang: | chromium
	@command -v clang++ > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends clang \
		&& apt-get install -y -qq "libclang-rt-$$(clang -dumpversion | cut -d. -f1)-dev"; } \
		|| echo "clang is not installed: the kernels are not fuzzed"

# Tests use one thread each; the files are shared out to as many processes as there are cores, four at most, in the order
# of tests/conftest.py: by the number of their tests, the longest would come last.
unit: setup chromium clang
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The core's tests on the oldest torch that is supported and on a newer Python: several GB of downloads, then half an hour.
# What was found is in docs/reliability.md.
PYTHON313 ?= python3.13
CORE := tests/kernels/test_reassemble.py tests/kernels/test_native.py tests/upsamplers tests/metrics tests/models \
	tests/plug/test_upgrade.py tests/test_semi_shift.py tests/test_losses.py tests/test_engine.py tests/test_precision.py
compat:
	$(PYTHON) -m venv build/torch-2.10
	build/torch-2.10/bin/pip install --quiet --no-compile --editable '.[all,dev]' 'torch==2.10.*' 'torchvision==0.25.*'
	OMP_NUM_THREADS=1 build/torch-2.10/bin/pytest -p no:cacheprovider -m 'not slow' $(CORE)
	$(PYTHON313) -m venv build/python-3.13
	build/python-3.13/bin/pip install --quiet --no-compile --editable '.[all,dev]'
	OMP_NUM_THREADS=1 build/python-3.13/bin/pytest -p no:cacheprovider -m 'not slow' $(CORE)

# site/index.html opens as a file; its search needs a server: python -m http.server --directory site
docs: setup
	$(BIN)/python scripts/docs.py build --strict

# What is published, into dist/, checked and tried in an empty environment: x86-64 Linux with g++, ten minutes, PyPI.
wheels: setup
	$(BIN)/python scripts/wheels.py

# Pictures of the page for docs/, which its tests take.
screenshots: setup chromium
	$(BIN)/pytest -q tests/test_demo_browser.py
	cp build/screenshots/demo.jpg build/screenshots/demo-phone.jpg docs/images/

clean:
	rm -rf $(VENV) build/screenshots site docs/assets/mathjax.js .pytest_cache .ruff_cache .hypothesis
