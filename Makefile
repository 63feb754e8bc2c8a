# make demo   set up .venv and train the small model on the embedded scenes, with metrics and pictures
# make test   set up .venv and run lint, types and the whole test suite
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint

setup: $(VENV)/.installed

# The stamp makes later calls reuse the environment until the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing packages into $(VENV): some minutes, up to 7 GB of disk"
	$(BIN)/python -m pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $@

demo: setup
	$(BIN)/python -m src.train experiment=massformer model/size=nano \
		recipe.steps=260 recipe.val_every=260 hydra.run.dir=outputs/demo
	@echo "next            $(BIN)/python -m src.predict checkpoint=outputs/demo/checkpoints/best.ckpt" \
		"input=data/synthetic/images_pad/test output=outputs/demo/labels"
	@echo "                (this network knows synthetic scenes alone; for photos see README, Train)"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile
