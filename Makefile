# make demo   the whole job on the bundled model and data, nothing else needed
# make test   the tests
# make test-quick   those that start no engine and take no long time: under a minute
# make soak   the long trials: all tests beside a loaded machine, and everything of docs/reliability.md (two hours)
# make test-older-sdk   the engine with the oldest SDK that it is tested with
# make test-newest-transformers   families, templates and exports with the newest transformers of the index
# make wheel-journey   build the wheel, install it, and go from an empty folder to an export
# make lint   format, lint, the directions of imports, and types
# make docs   the documentation as a site in both languages: build/site
# make bench  the quick benchmarks; their figures go to benchmarks/results
PYTHON ?= python3
BIN := .venv/bin
OLDER_SDK := $(shell sed -n 's/^OLDEST_SDK.*= "\([0-9.]*\)".*/\1/p' src/tinkersmith/version.py)
INSTALLED := .venv/.installed
COOKBOOK := .venv/.cookbook
DOCS := .venv/.docs
# The tests start hundreds of programs, and each would compile the package again.
export PYTHONDONTWRITEBYTECODE :=
# Three for two cores, because many tests wait for programs that they start.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-quick test-older-sdk test-newest-transformers soak wheel-journey lint format docs bench clean

demo: $(INSTALLED)
	$(BIN)/python split_dataset.py
	$(BIN)/python train_with_config.py --set EXPORT_AFTER_TRAINING=no
	$(BIN)/python evaluate_model.py --compare-base
	$(BIN)/python export_model.py --out exported/demo-adapter --force
	@echo
	@echo "The run:         runs/ (newest folder: settings, lengths, metrics, checkpoints, samples)"
	@echo "The scores:      evaluation_results.json"
	@echo "The LoRA (PEFT): exported/demo-adapter (loaded above by plain transformers + peft)"

test: $(INSTALLED) $(COOKBOOK)
	$(BIN)/python -m pytest $(WORKERS)

test-quick: $(INSTALLED)
	$(BIN)/python -m pytest $(WORKERS) -m "not engine and not cookbook and not slow and not long"

soak: $(INSTALLED) $(COOKBOOK)
	TINKERSMITH_TEST_SEED=$$(date +%s) \
	  $(BIN)/python tools/beside_load.py 4 $(BIN)/python -m pytest -v $(WORKERS) -m ""
	for trial in 1 2 3 4 5; do \
	  $(BIN)/python tools/beside_load.py 2 $(BIN)/python -m pytest -n 0 \
	    tests/training/test_interrupted_runs.py tests/service/test_connection.py || exit 1; \
	done
	$(BIN)/python -m benchmarks.reliability.kills --trials 200 --parallel 2
	$(BIN)/python -m benchmarks.reliability.damage
	$(BIN)/python -m benchmarks.reliability.faults
	$(BIN)/python -m benchmarks.reliability.files --files 100000
	$(BIN)/python -m benchmarks.reliability.settings --settings 20000
	$(BIN)/python -m benchmarks.reliability.wire --bodies 100000
	$(BIN)/python -m benchmarks.reliability.load --clients 64 --minutes 10
	$(BIN)/python -m benchmarks.reliability.soak --steps 5000
	$(BIN)/python -m benchmarks.reliability.rehearsals
	$(BIN)/python -m benchmarks.reliability.estimates
	$(BIN)/python -m benchmarks.reliability.memory
	$(BIN)/python -m benchmarks.outside_evaluations
	$(BIN)/python -m benchmarks.gguf
	$(BIN)/python -m benchmarks.vllm_exports
	$(BIN)/python -m benchmarks.proving
	$(MAKE) test-newest-transformers

test-older-sdk: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/tinker-$(OLDER_SDK) tinker==$(OLDER_SDK)
	PYTHONPATH=$(CURDIR)/.venv/tinker-$(OLDER_SDK) $(BIN)/python -m pytest $(WORKERS) \
	  tests/engine/server/routes/test_training.py tests/engine/server/routes/test_sampling.py \
	  tests/engine/server/routes/test_rest.py tests/engine/test_process.py

# With what it depends on: a newer one may ask for newer tokenizers.
test-newest-transformers: $(INSTALLED)
	rm -rf .venv/newest
	$(BIN)/python -m pip install --quiet --upgrade --target .venv/newest transformers
	PYTHONPATH=$(CURDIR)/.venv/newest $(BIN)/python -m pytest $(WORKERS) \
	  tests/engine/model tests/engine/images tests/engine/cookbook/test_state_families.py \
	  tests/engine/sampling tests/models tests/text tests/export

wheel-journey: $(INSTALLED)
	$(BIN)/python tools/wheel_journey.py

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python tools/docs_site.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.exactness
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.round_trip
	$(BIN)/python -m benchmarks.wrong_input
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.training --quick
	$(BIN)/python -m benchmarks.sampling --quick
	$(BIN)/python -m benchmarks.demo
	$(BIN)/python -m benchmarks.table

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Error: $(PYTHON) is older than Python 3.11; name a newer one: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

# Only the tests need it: its example loops are run against the engine.
$(COOKBOOK): $(INSTALLED) tests/cookbook.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -r tests/cookbook.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps tinker-cookbook
	@touch $@

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $@

clean:
	rm -rf .venv runs exported evaluation_results.json
