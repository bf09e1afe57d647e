# Works on a bare machine with Python >= 3.10 and make: everything is installed into .venv
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: setup demo test

setup: .venv/.installed

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python >= 3.10 is needed: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	@touch $@

# data, training, evaluation, pictures: out/burgers_cpu/
demo: setup
	$(PY) train.py config/burgers_cpu.py
	$(PY) eval.py --ckpt out/burgers_cpu --json out/burgers_cpu/eval.json
	$(PY) sample.py --ckpt out/burgers_cpu

test: setup
	$(PY) -m pytest
