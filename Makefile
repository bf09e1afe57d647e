# Works on a bare machine with Python >= 3.10 and make: everything is installed into .venv
PYTHON ?= python3
PY := .venv/bin/python
PY_GPU ?= python

.PHONY: setup data demo pretrained gpu stages universal peers figures test test-core test-slow

setup: .venv/.installed

.venv/.installed: requirements.txt requirements-gpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python >= 3.10 is needed: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	@touch $@

# the data of the quick start; training makes them too, where they are absent
data: setup
	$(PY) data.py make burgers --n 1000 --nu .01

# the quick start, into out/burgers_cpu: data, training, evaluation, pictures
demo: setup
	$(PY) train.py config/burgers_cpu.py
	$(PY) eval.py --ckpt out/burgers_cpu --json out/burgers_cpu/eval.json
	$(PY) sample.py --ckpt out/burgers_cpu

# the weights in pretrained/: train them again, from scratch
PRETRAINED := burgers_cpu ns_cpu

pretrained: setup
	for name in $(PRETRAINED); do \
	  $(PY) train.py config/$$name.py --out_dir=out/pretrained/$$name || exit 1; \
	  $(PY) -m runtime.checkpoint out/pretrained/$$name pretrained/$$name.pt || exit 1; \
	done

# Every figure that takes a GPU, in the environment of `python`: its torch, requirements-gpu.txt and
# requirements-peers.txt. The most important come first: each experiment is trained for TRAIN_MINUTES and evaluated;
# then speeds, peers, the study. After a stop, the same command goes on; speeds and peers begin anew.
GPU_CONFIGS := burgers_128_pure ns_64 ns_64_learned diffusion_reaction_128 compressible_1d_1024 ks_256 shallow_water_128 darcy_128
TRAIN_MINUTES ?= 60
PEER_MINUTES ?= 20

gpu:
	@echo "about $$(( ($(words $(GPU_CONFIGS)) * $(TRAIN_MINUTES) + (16 + 44) * $(PEER_MINUTES)) / 60 + 4 )) hours; 55 GB of data are made in datasets/"
	for name in $(GPU_CONFIGS); do $(MAKE) gpu-$$name MINUTES=100000 || exit 1; done
	$(PY_GPU) eval.py --ckpt out/burgers_128_pure --device cuda --initial_step 10 --json out/burgers_128_pure/eval10.json
	$(PY_GPU) bench.py speed --device=cuda --batch_size=256 --json out/speed.json
	$(PY_GPU) bench.py peers config/burgers_128_pure.py --device=cuda --minutes $(PEER_MINUTES) --seeds 2 --json out/peers.json
	$(PY_GPU) -m dev.study study config/burgers_128_pure.py --device=cuda --minutes $(PEER_MINUTES) --seeds 2 --nu .001 .01

# A piece of one experiment, its data included: make gpu-ns_64 MINUTES=9, repeated until it is done
MINUTES ?= 10
gpu-%:
	timeout -s TERM $(MINUTES)m $(PY_GPU) train.py config/$*.py --device=cuda --max_minutes=$(TRAIN_MINUTES); \
	code=$$?; \
	if [ $$code = 124 ]; then echo "stopped after $(MINUTES) minutes: the same command goes on"; exit 0; fi; \
	if [ $$code != 0 ]; then exit $$code; fi; \
	$(PY_GPU) eval.py --ckpt out/$* --device cuda --json out/$*/eval.json

# One model of ten equations beside a model of each (docs/zoo.json): data, 35 to 90 minutes of one thread, evaluation
universal: setup
	OMP_NUM_THREADS=1 $(PY) train.py config/universal_cpu.py
	$(PY) eval.py --ckpt out/universal_cpu --json out/universal_cpu/eval.json
	$(PY) -m dev.universal compare out/universal_cpu/eval.json

# Every later stage on Kuramoto-Sivashinsky, and the operator alone trained for as long as the ensemble; two seeds
# side by side, a table of each: 19 minutes on two cores
SEEDS := 0 1
PLAIN := OMP_NUM_THREADS=1 $(PY)

stages: setup
	for seed in $(SEEDS); do ( \
	  $(PLAIN) train.py config/ks_full.py --seed=$$seed --out_dir=out/ks_full_$$seed && \
	  $(PLAIN) train.py config/ks_full.py --seed=$$seed --out_dir=out/ks_finetuned_$$seed --init_from=out/ks_full_$$seed \
	    --stages=operator --max_iters=2500 --unroll=4 --unroll_start=1 --unroll_switch=.5 \
	    --learning_rate=3e-4 --muon_lr=3e-3 && \
	  $(PLAIN) eval.py --ckpt out/ks_full_$$seed --n_members 8 \
	    --stepper operator diff_residual consistency_distill ensemble \
	    --ttc stepper=ensemble candidates=4 beam_width=1 --json out/ks_full_$$seed/eval.json && \
	  $(PLAIN) eval.py --ckpt out/ks_finetuned_$$seed --stepper operator --json out/ks_finetuned_$$seed/eval.json \
	  ) & pids="$$pids $$!"; done; for pid in $$pids; do wait $$pid || exit 1; done

# the figures of README.md and of six sections of docs/RESULTS.md, found again: what takes MINUTES=10 in all
figures: peers
	$(PY) -m dev.figures --minutes $(MINUTES)

# the FNO of bench.py peers and dev/study.py, and meshes: into the same .venv
peers: setup
	$(PY) -m pip install -q --disable-pip-version-check -r requirements-peers.txt

test: setup
	$(PY) -m pytest

# the core alone, which is what a fork of the project runs first
test-core: setup
	$(PY) -m pytest tests/core

# what takes minutes: kills, signals, several processes
test-slow: setup
	$(PY) -m pytest -m slow
