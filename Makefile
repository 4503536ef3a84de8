PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# a new folder each time: no run is ever overwritten
DEMO := outputs/demo/$(shell date +%Y-%m-%d_%H-%M-%S)
STAMP := $(VENV)/.installed
# two processes each with one thread beat one with two on the small tensors of the tests
TEST_ENV := OMP_NUM_THREADS=1 MPLBACKEND=Agg WANDB_MODE=offline

.PHONY: install demo test lint format bench study clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# EDUE against layer and deep ensembles on the contours of four radiologists
demo: install
	$(BIN)/python -m edue_lightning.train -m experiment=demo hydra.sweep.dir=$(DEMO) \
	  method=edue,edue_unguided,layer_ensemble,deep_ensemble,deep_ensemble_rater_per_member
	$(BIN)/python -m edue_lightning.report runs=$(DEMO)

test: install
	$(TEST_ENV) $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the whole comparison: methods x data sets x SEEDS; QUICK=1 for short trainings; goes on where it was cut off
SEEDS ?= 3
study: install
	$(BIN)/python experiments/comparison/study.py compare --seeds $(SEEDS) $(if $(QUICK),--quick --folder outputs/study_quick)

# speed as ratios measured side by side in one run
bench: install
	$(BIN)/python experiments/benchmarks/forward_cost.py
	$(BIN)/python experiments/benchmarks/metric_cost.py
	$(BIN)/python experiments/benchmarks/data_wait.py

clean:
	rm -rf $(VENV) outputs multirun build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
