# make setup | demo | test | check | check-device. No root, no apt: Python 3.11, g++ and make are enough.
SHELL := /bin/bash
VENV := .venv
RANKS ?= 3
DEMO ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
# mpirun of the environment where there is one (MPI=wheel), else the system's; as root in a container, too.
RUN := PATH=$(CURDIR)/$(VENV)/bin:$$PATH OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

.PHONY: setup demo test check check-device clean

setup:
	@MPI=$(MPI) bash tools/setup.sh

demo: setup
	@$(RUN) bash examples/demo.sh $(RANKS) $(DEMO)

check: setup
	$(RUN) ruff check . && $(RUN) ruff format --check . && $(RUN) mypy && $(RUN) lint-imports

# Two processes: many tests wait for jobs and sockets.
test: check
	$(RUN) pytest -n 2 --dist worksteal

# The device side alone: no torch, no MPI, no compiler; a minute or two, needs a package index.
check-device:
	@bash tools/check_device_install.sh

clean:
	rm -rf $(VENV) build *.egg-info
