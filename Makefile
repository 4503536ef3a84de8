PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
EXTRA ?= dev
# a new folder each time: no run is ever overwritten
DEMO := outputs/demo/$(shell date +%Y-%m-%d_%H-%M-%S)
STAMP := $(VENV)/.installed
# two processes each with one thread beat one with two on the small tensors of the tests
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg WANDB_MODE=offline

.PHONY: install demo test test-exhaustive test-fast test-oldest test-newest test-networks lint format docs bench bench-gpu study clean

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[$(EXTRA)]"
	touch $@

# EDUE against layer and deep ensembles on the contours of four radiologists
demo: install
	$(BIN)/python -m edue_lightning.train -m experiment=demo hydra.sweep.dir=$(DEMO) \
	  method=edue,edue_levels_mask,edue_unguided,layer_ensemble,deep_ensemble,deep_ensemble_rater_per_member
	$(BIN)/python -m edue_lightning.report runs=$(DEMO)

test: install
	$(TEST_ENV) $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup -m "not exhaustive"

# with further moments to be killed at, and long work
test-exhaustive: install
	$(TEST_ENV) $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

test-fast: install
	$(TEST_ENV) $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup -m "not slow and not exhaustive"

# the fast tests in environments of their own. constraints-oldest.txt holds the lower bounds of pyproject.toml:
# uv pip compile --resolution lowest-direct --extra test pyproject.toml, without lines of CUDA
test-oldest:
	$(MAKE) test-fast VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt EXTRA=test

test-newest:
	$(MAKE) test-fast VENV=.venv-newest CONSTRAINTS=/dev/null EXTRA=test

# networks of libraries that want torchvision, and other versions of timm than the benchmarks: without our constraints,
# but with our torch, since the newest torchvision brings another one
NETWORKS_VENV ?= .venv-networks
test-networks:
	$(PYTHON) -m venv $(NETWORKS_VENV)
	$(NETWORKS_VENV)/bin/pip install --quiet --editable ".[networks,test]" "$$(grep ^torch== constraints.txt)"
	PYTHONPATH=experiments/benchmarks $(TEST_ENV) $(NETWORKS_VENV)/bin/python -m pytest -p torchvision_operators \
	  tests/networks tests/methods/test_methods_on_networks.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the pages of docs/ and the API reference as a site in site/; every warning is an error
docs: install
	$(BIN)/sphinx-build --fail-on-warning --fresh-env --quiet --doctree-dir build/doctrees docs site

# the whole comparison: methods x data sets x SEEDS; READ_OUTS=1 measures each network by other masks and with temperature
# scaling too; QUICK=1 for short trainings; an interrupted one resumes
SEEDS ?= 3
STUDY_OPTIONS = $(if $(DATA),--data $(DATA)) --folder outputs/study$(if $(QUICK),_quick --quick)
study: install
	$(BIN)/python experiments/comparison/study.py compare --seeds $(SEEDS) $(STUDY_OPTIONS)
	$(if $(READ_OUTS),$(BIN)/python experiments/comparison/study.py reread --seeds $(SEEDS) $(STUDY_OPTIONS))
	$(BIN)/python experiments/comparison/study.py report --folder outputs/study$(if $(QUICK),_quick --quick)

# speed as ratios measured side by side in one run; what is compared with the framework has an environment of its own,
# since its torchvision stands in the way of a CPU torch
BENCH_VENV ?= .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed

$(BENCH_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BENCH_VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@

bench: install $(BENCH_STAMP)
	$(BIN)/python experiments/benchmarks/allocator.py
	$(BIN)/python experiments/benchmarks/step_cost.py
	$(BIN)/python experiments/benchmarks/one_pass_cost.py
	$(BENCH_VENV)/bin/python experiments/benchmarks/framework_cost.py
	$(BIN)/python experiments/benchmarks/ensemble_cost.py
	$(BIN)/python experiments/benchmarks/sweep_cost.py
	$(BIN)/python experiments/benchmarks/metric_cost.py
	$(BIN)/python experiments/benchmarks/evaluation_cost.py
	$(BIN)/python experiments/benchmarks/data_wait.py
	$(BIN)/python experiments/benchmarks/growth.py
	$(BIN)/python experiments/benchmarks/triage_page.py

# the same on a GPU, at the sizes of real trainings
bench-gpu: install
	$(BIN)/python experiments/benchmarks/gpu.py

clean:
	rm -rf $(VENV) $(BENCH_VENV) .venv-oldest .venv-newest $(NETWORKS_VENV) site outputs multirun build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
