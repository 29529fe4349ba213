# make demo   the main job on the bundled data: render, extract, narrate, embed, train EMB and TEA and two baselines, ask each
#             about another video's sentence, print the leaderboard and write it as a page
# make test   the tests without the slow ones
# Both create .venv and install everything on the first call.
# make docs   the documentation site in build/site
# make bench  training-step and inference time of each method on this machine
# make gpu    everything that only a GPU can show; docs/gpu.md
# make audit  known vulnerabilities of what is installed
# CONSTRAINTS=constraints.txt installs the versions with which the tests last passed.
# TORCH=cpu installs torch without CUDA, where there is no GPU.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

DEMO_RUNS := runs/demo
DEMO := $(DEMO_RUNS)/shapes-shapes
DEMO_ALL := $(DEMO)/tea-paper+max_epochs-8/seed0,$(DEMO)/emb-paper+max_epochs-8/seed0,$(DEMO)/bias_kde-paper/seed0,$(DEMO)/bias_query-paper/seed0

# One process per core, at most 8 to limit memory, each with one torch thread.
FAST_TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist=worksteal -m "not slow and not gpu"

# These settings of the user would make pip install elsewhere, or less; without bytecode every process would compile again.
unexport PYTHONDONTWRITEBYTECODE
unexport PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT PIP_NO_DEPS PIP_REQUIRE_VIRTUALENV PIP_CONSTRAINT PIP_DRY_RUN
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: install demo test test-all coverage bench gpu gpu-wheels audit lint format docs clean

install: $(INSTALLED)

# Python compiles what it imports; pip would compile all 20,000 files, on one core.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vmr_zoo needs Python 3.11 or newer; found: $$($(PYTHON) --version 2>&1). Say make PYTHON=python3.12 …"; exit 2; }
	@echo "Installing into $(VENV): some minutes and about 7 GB the first time."
	@[ -n "$(TORCH)" ] || nvidia-smi -L >/dev/null 2>&1 || \
		echo "No NVIDIA GPU was found: make TORCH=cpu … leaves out CUDA, more than half of the size."
	$(PYTHON) -m venv $(VENV)
	$(if $(filter cpu,$(TORCH)),$(BIN)/python -m pip install --disable-pip-version-check --no-compile $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) torch torchvision --index-url https://download.pytorch.org/whl/cpu)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	@touch $@

# Re-running a sweep resumes it. conf/recipe/shapes sets one thread per job, so a sweep trains one model on each core. Both
# come within 8 points of their best in 8 epochs; the other methods need longer (experiments/ood_shapes). The baselines see no video.
demo: $(INSTALLED)
	$(BIN)/vmr extract data=shapes encoder=grid
	$(BIN)/vmr narrate data=shapes narrator=shapes
	$(BIN)/vmr embed data=shapes
	$(BIN)/vmr train -m method=tea,emb data=shapes trainer.max_epochs=8 paths.runs=$(DEMO_RUNS)
	$(BIN)/vmr train -m method=bias_kde,bias_query data=shapes paths.runs=$(DEMO_RUNS)
	test -d $(DEMO)/bias_query-paper/seed0/eval || $(BIN)/vmr eval -m run=$(DEMO_ALL) split=iid probe=other_query
	$(BIN)/vmr report runs=$(DEMO_RUNS) significance=true html=true open=true study=experiments/ood_shapes/results.csv

test: $(INSTALLED)
	$(FAST_TESTS)

test-all: $(INSTALLED)
	$(BIN)/python -m pytest

coverage: $(INSTALLED)
	$(FAST_TESTS) --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

bench: $(INSTALLED)
	$(BIN)/vmr bench -m method=emb,tea,qd_detr,mesm,mmn,vdi,moment_detr,bm_detr,lmr data=synthetic

gpu: $(INSTALLED)
	$(BIN)/vmr gpu

# For a machine with a GPU and without a package index.
gpu-wheels: $(INSTALLED)
	rm -rf build/wheels
	$(BIN)/python experiments/gpu/wheels.py build/wheels

audit: $(INSTALLED)
	$(BIN)/pip-audit --skip-editable

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/structure.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages keep their places in the repository, so that links work on GitHub and on the site. Files that pages link to
# come along.
docs: $(INSTALLED)
	rm -rf build/docs
	mkdir -p build/docs
	git ls-files -z -- '*.md' LICENSE CITATION.cff constraints.txt Makefile docs experiments conf src tests/golden | \
		xargs -0 tar -cf - | tar -xf - -C build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Never touches runs/ or the cache.
clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
