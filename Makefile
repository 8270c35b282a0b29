# `make demo` and `make test` are all one needs on a fresh machine with Python 3.10+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_run

FUZZ_SECONDS ?= 30
FUZZ_TARGETS := rows array gz parquet yaml tokenizer records checkpoint checkpoint-sealed \
	session session-sealed request import

.PHONY: demo test faults fuzz lint types clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,track]"
	touch $@

demo: $(VENV)/installed  ## train on the built-in sample, show the verdict and an answer
	$(BIN)/newllm train dolly --data sample --context-dim 128 --batch-size 8 --minutes 1.4 --out $(DEMO)
	@echo
	$(BIN)/newllm generate $(DEMO)/best_new_llm_dolly_layers1_bpe.pt --temperature 0 \
		--prompt "What is the capital of France?"

test: $(VENV)/installed  ## all tests, offline
	$(BIN)/pytest -q -n auto

faults: $(VENV)/installed  ## kills, full disks and read-only folders at every change of a file
	$(BIN)/pytest -q tests/faults --all-faults

fuzz: $(VENV)/installed  ## coverage-guided fuzzing of every reader, FUZZ_SECONDS each
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	for target in $(FUZZ_TARGETS); do \
		echo "== $$target"; \
		$(BIN)/python -m tests.fuzz $$target --seconds $(FUZZ_SECONDS) || exit 1; \
	done

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/basedpyright --level error

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
