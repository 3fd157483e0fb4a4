# Everything needs only python3, make and a C++ compiler: the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/demo
	$(BIN)/octaveconv quickstart --out runs/quickstart --json runs/quickstart/quickstart.json

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Each stamp says that the packages of its extras are installed, as pyproject.toml has them now.
.venv/demo: EXTRAS := cli,plots,demo
.venv/test: EXTRAS := dev
.venv/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv runs
