# `make demo` and `make test` are all one needs on a fresh machine with Python 3.10+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_run

.PHONY: demo test lint types clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,track]"
	touch $@

demo: $(VENV)/installed  ## train on the built-in sample, show the verdict and an answer
	$(BIN)/newllm train dolly --data sample --context-dim 128 --batch-size 8 --minutes 1.4 --out $(DEMO)
	@echo
	$(BIN)/newllm generate $(DEMO)/best_new_llm_dolly_layers1_bpe.pt --temperature 0 \
		--prompt "What is the capital of France?"

test: $(VENV)/installed  ## all tests, offline (but for onnxruntime-web, fetched once)
	$(BIN)/python examples/browser/fetch.py || \
		echo "onnxruntime-web could not be fetched: the tests of examples/browser will be skipped" >&2
	$(BIN)/pytest -q -n auto

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/basedpyright --level error

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
