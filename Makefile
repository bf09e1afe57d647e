# Works on a bare machine with Python >= 3.10 and make: everything is installed into .venv
PYTHON ?= python3
PY := .venv/bin/python

PY_GPU ?= python

.PHONY: setup demo gpu peers test test-slow

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

# Every GPU figure of docs/RESULTS.md in one command, in the environment of `python` (which needs
# requirements-peers.txt): the headline trained and evaluated, peers at its size, all speeds, the study. Finished parts
# are not run again: a stopped training goes on, and so does the study.
GPU_MINUTES ?= 20

gpu:
	@echo "about $$(( (14 + 32) * $(GPU_MINUTES) / 60 )) hours for peers and study, and 2 to 6 for the headline; two data sets of 8.2 GB are made in datasets/"
	$(PY_GPU) train.py config/burgers_128_pure.py --device=cuda
	$(PY_GPU) eval.py --ckpt out/burgers_128_pure --device cuda --json out/burgers_128_pure/eval.json
	$(PY_GPU) eval.py --ckpt out/burgers_128_pure --device cuda --initial_step 10 --json out/burgers_128_pure/eval10.json
	$(PY_GPU) bench.py speed --device=cuda --batch_size=256 --json out/speed.json
	$(PY_GPU) bench.py peers config/burgers_128_pure.py --device=cuda --minutes $(GPU_MINUTES) --seeds 2 --json out/peers.json
	$(PY_GPU) bench.py study config/burgers_128_pure.py --device=cuda --minutes $(GPU_MINUTES) --seeds 2 --nu .001 .01

# what bench.py peers needs, into the same .venv
peers: setup
	$(PY) -m pip install -q --disable-pip-version-check -r requirements-peers.txt

test: setup
	$(PY) -m pytest

# what takes minutes: 50 kills, 20 signals, processes
test-slow: setup
	$(PY) -m pytest -m slow
