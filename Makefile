# make demo   the whole line on the embedded model: set up, fine-tune, export, chat, measure
# make test   set up, run the tests            make check   lint, types, architecture, packaging
# make test-all  the long tests too          make faults  the fault campaigns (tests/README.md)
# make test-gpu  models on a device with memory of its own, which needs no GPU (tests/README.md)
# make docs   renew the generated pages        make clean   remove what was made here
#
# make set-up CPU=all   llama.cpp with a back end for each kind of processor; CPU=portable goes back to the one for all
PYTHON ?= python3
TORCH ?= cpu
RUN := .venv/bin/python

.PHONY: demo test test-all test-gpu faults check docs lock clean set-up interpreter

set-up:
	@$(PYTHON) scripts/setup.py --torch $(TORCH) $(if $(CPU),--cpu $(CPU))

demo: set-up
	@.venv/bin/gladstone demo

test: set-up interpreter
	@$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

test-all: set-up interpreter
	@$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# triton's interpreter (198 MB, once, into the cache): the tests run the kernels of a GPU on a processor with it
interpreter: set-up
	@$(RUN) scripts/interpreter.py

test-gpu: set-up
	@$(RUN) -m tests.device.rpc_library
	@$(RUN) -m pytest -m device --durations=0 -v

faults: set-up
	@$(RUN) -m tests.faults.damage_gguf --files 1000 --seed 0
	@$(RUN) -m tests.faults.damage_gguf --files 1000 --seed 1 --manifest
	@$(RUN) -m tests.faults.kill_training --times 100 --seed 0
	@$(RUN) -m tests.faults.kill_export --times 100 --seed 0

check: set-up
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@.venv/bin/lint-imports
	@$(RUN) scripts/docs.py --check
	@$(RUN) scripts/notebooks.py --check

docs: set-up
	@$(RUN) scripts/docs.py
	@$(RUN) scripts/notebooks.py

lock:
	@$(PYTHON) scripts/lock.py

clean:
	rm -rf .venv .cache build dist runs bench-report .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
