# `make demo` and `make test` are all one needs on a fresh machine with Python 3.10+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_run

FUZZ_SECONDS ?= 30
FUZZ_TARGETS := rows array csv gz bz2 xz zst zip parquet arrow saved layout yaml tokenizer records \
	checkpoint checkpoint-sealed checkpoint-values counts counts-sized session session-sealed \
	request responses import

.PHONY: demo test faults fuzz lint types docs wheel audit clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,track]"
	touch $@

demo: $(VENV)/installed  ## train on the built-in sample, show the verdict and a talk that remembers
	$(BIN)/newllm train hh_rlhf --data sample --context-dim 128 --epochs 4 --out $(DEMO)
	@echo
	printf 'Hello, my name is Lena.\nWhat is my name?\n' | \
		$(BIN)/newllm chat $(DEMO)/best_new_llm_hh_rlhf_layers1_bpe.pt --temperature 0 > $(DEMO)/talk.txt
	@cat $(DEMO)/talk.txt
	@awk '/^Model: / {answers++} answers > 1' $(DEMO)/talk.txt | grep -q Lena || \
		{ echo "demo: the last answer does not say the name that it was told" >&2; exit 1; }

test: $(VENV)/installed  ## all tests, offline (but for onnxruntime-web, fetched once)
	$(BIN)/python examples/browser/fetch.py || \
		echo "onnxruntime-web could not be fetched: the tests of examples/browser will be skipped" >&2
	$(BIN)/pytest -q -n auto --dist worksteal

faults: $(VENV)/installed  ## kills, full disks and read-only folders at every change of a file
	$(BIN)/pytest -q -n auto --dist worksteal tests/faults --all-faults

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

docs: $(VENV)/installed  ## the pages as a site that needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site"

wheel:  ## dist/*.whl, built twice: the same bytes, or it fails
	rm -rf build dist .wheel
	for folder in dist .wheel; do SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || date +%s) \
		$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir $$folder . && rm -rf build || exit 1; done
	cmp dist/*.whl .wheel/*.whl
	rm -rf .wheel

audit:  ## known vulnerabilities of what constraints.txt pins; asks the advisory service
	$(PYTHON) -m venv .audit
	.audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	.audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt || \
		{ echo "audit: vulnerable packages above, or the advisory service is out of reach" >&2; exit 1; }

clean:
	rm -rf .audit .wheel dist site $(VENV) $(DEMO) build *.egg-info
