# The commands of the project, each a line. The environment is built by the first that needs it; see tools/make_env.py.
# Touch it to add a command; what one does stands in tools/. Guarded by tests/test_packaging.py.
PYTHON = $(shell python3 tools/make_env.py --print-interpreter 2>/dev/null)
DEMO_ARGS ?=
TEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env which-python doctor demo test lint wheel minkowski test-minkowski lock clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

env:  ## build the environment (once; returns at once when it is there)
	@python3 tools/make_env.py

which-python:  ## print the interpreter of the environment and nothing else
	@python3 tools/make_env.py --print-interpreter

doctor: env  ## say what is installed, what is wrong with it and how to mend it
	@"$(PYTHON)" tools/doctor.py

demo: env  ## run the whole path on pictures that it makes itself (DEMO_ARGS="..." is passed on)
	@"$(PYTHON)" tools/run_demo.py $(DEMO_ARGS)

test: env  ## run the tests (TEST_ARGS="..." is passed on)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} "$(PYTHON)" -m pytest $(TEST_ARGS)

lint: env  ## check style with ruff
	@"$(PYTHON)" -m ruff check .

wheel: env  ## build the wheel into dist/
	@"$(PYTHON)" -m pip wheel . --quiet --no-deps --no-build-isolation --wheel-dir dist

minkowski: env  ## build MinkowskiEngine for layout='minkowski' and install it into the environment (5 minutes, once)
	@"$(PYTHON)" tools/build_minkowski.py

test-minkowski: minkowski  ## run the tests that need MinkowskiEngine
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} "$(PYTHON)" -m pytest tests/models/test_minkowski_layout.py \
	  tests/models/test_official_parity.py tests/test_build_minkowski.py $(TEST_ARGS)

lock:  ## write requirements.lock anew from setup.cfg (needs uv)
	uv pip compile --universal --python-version 3.11 setup.cfg --extra dev -o requirements.lock --generate-hashes --no-emit-package opencv-python --custom-compile-command "make lock"

clean:  ## remove what builds and tests leave in the checkout (not data, work_dirs or the environment)
	rm -rf build dist .pytest_cache .ruff_cache .coverage *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
