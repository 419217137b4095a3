# make demo    watch an agent buy itself a sandbox in a sandbox
# make test    the tests
# make check   the tests, and everything else CI looks at
# make lock    pin the dependencies anew

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint types lock clean

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

demo: $(READY)
	$(BIN)/turtles inception --depth 2 --currency XMR --data-dir .turtles/demo

test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal -m "not acceptance"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

check: lint types test
	$(BIN)/python -m tests.acceptance.wheel_smoke

lock: $(READY)
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --extra dev --allow-unsafe --strip-extras --no-header --no-annotate \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		-o requirements.lock pyproject.toml
	sed -i '1i # Every package of the two README commands, pinned.  Made anew by `make lock`.' requirements.lock

clean:
	rm -rf $(VENV) .turtles build dist *.egg-info
