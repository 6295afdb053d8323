# Everything runs on a machine that has only Python 3.11 or later and make.
.DEFAULT_GOAL := help
.PHONY: help venv test test-app test-gpu test-tpu test-scale test-soak test-torch demo included-model ablation \
  benchmark-psca benchmark-reading benchmark-train-step benchmark-sample benchmark-guidance benchmark-ranking \
  benchmark-long-clips benchmark-kept-parts benchmark-extract benchmark-evaluate compile-table lint lock clean FORCE
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# As in the extra app, and what drives a browser.
APP := gradio>=6.20,<7 playwright>=1.60
TORCH := torch==2.13.0
# Without their dependencies, which are in .venv or not needed.
OPEN_CLIP := open_clip_torch==3.3.0 torchvision==0.28.0 timm==1.0.31 ftfy==6.3.1 wcwidth==0.9.4
# For fine-tuning language models.
PEFT := peft==0.21.2 accelerate==1.15.0
# torchvggish imports resampy, which needs numba: librosa has brought it.
VGGISH := torchvggish==0.2 resampy==0.4.3
# Huge pages, and freed memory is kept instead of returned to the system.
KEPT_MEMORY := glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736
NEW_ENOUGH := import sys; raise SystemExit(sys.version_info < (3, 11))

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## create .venv and install the locked packages (the other targets do this themselves)

# An environment of an older or removed Python is created again.
ifneq ($(shell $(PY) -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo usable),usable)
$(STAMP): FORCE
endif

$(STAMP): requirements.lock pyproject.toml setup.py
	@if ! $(PY) -c '$(NEW_ENOUGH)' >/dev/null 2>&1 || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  found=; bare=; \
	  for candidate in python3.13 python3.12 python3.11 python3; do \
	    $$candidate -c '$(NEW_ENOUGH)' >/dev/null 2>&1 || continue; \
	    if $$candidate -c 'import ensurepip, venv' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	    bare=$${bare:-$$candidate}; \
	  done; \
	  if [ -z "$$found" ] && [ -n "$$bare" ]; then \
	    echo "error: $$bare cannot create environments; on Debian or Ubuntu: apt-get install $$bare-venv" >&2; exit 1; \
	  elif [ -z "$$found" ]; then \
	    echo "error: Python 3.11 or later is needed; python3.13, python3.12, python3.11 and python3 are missing or older" >&2; exit 1; \
	  fi; \
	  echo "creating $(VENV) with $$($$found --version)"; \
	  $$found -m venv --clear $(VENV); \
	fi
	@echo "installing the packages of requirements.lock into $(VENV) (a few minutes on a slow line)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The longest files start first, so that both processes end at about the same time.
test: venv  ## run the tests
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
	  tests/test_command_lines.py tests/training tests/sampling tests $(ARGS)

# The TPU compiler stays out of .venv: with it, JAX would look for a TPU.
.tpu: requirements-tpu.lock $(STAMP)
	@echo "installing libtpu into .tpu (210 MB)"
	@rm -rf $@ && $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --target $@ -r requirements-tpu.lock
	@touch $@

test-tpu: .tpu  ## compile the kernels and the training step for TPUs, without a TPU
	PYTHONPATH=.tpu JAX_PLATFORMS=cpu $(PY) -m pytest -q -n 2 -m tpu tests/tpu $(ARGS)

test-gpu: venv  ## run the kernels on an NVIDIA GPU
	$(PY) -m pip install --quiet --disable-pip-version-check "$$($(PY) -c 'import jax; print(f"jax[cuda13]=={jax.__version__}")')"
	JAX_PLATFORMS=cuda,cpu XLA_FLAGS= $(PY) -m pytest -q -m gpu tests/gpu $(ARGS)

test-scale: venv  ## run the longer tests: simulated devices, several processes, kills (25 minutes)
	$(PY) -m pytest -q -n 2 --dist worksteal -m "scale and not soak" tests $(ARGS)

test-soak: .torch  ## run the tests for a release: more meshes, twenty kills, the published sizes (an hour)
	PYTHONPATH=.torch $(PY) -m pytest -q -m soak --timeout 3600 tests $(ARGS)
	$(PY) -m pytest -q -n 2 --hypothesis-profile=new tests/audio tests/common tests/data tests/flow tests/media $(ARGS)

# Benchmarks and tests compare with PyTorch; the programs of this project do not need it.
.torch: $(STAMP)
	@echo "installing PyTorch into .torch (2 GB or more)"
	@rm -rf $@ && $(PY) -m pip install --quiet --disable-pip-version-check --target $@ $(TORCH)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target $@ $(OPEN_CLIP) $(PEFT) $(VGGISH)
	@touch $@

test-torch: .torch  ## compare with PyTorch, transformers, open_clip and torchvggish, and read their files
	PYTHONPATH=.torch $(PY) -m pytest -q -m torch tests/twin $(ARGS)

# The page's packages, and Playwright, which drives a browser in the tests.
.app: requirements-app.lock $(STAMP)
	@echo "installing Gradio and Playwright into .app (400 MB)"
	@rm -rf $@ && $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --target $@ -r requirements-app.lock
	@touch $@

test-app: .app  ## use the page in Chromium, which is installed where apt-get can
	@command -v chromium > /dev/null || (apt-get update -qq && apt-get install -y -qq chromium) > /dev/null 2>&1 \
	  || { echo "error: the tests of the page need Chromium: apt-get install chromium" >&2; exit 1; }
	PYTHONPATH=.app $(PY) -m pytest -q -m app tests/app $(ARGS)

demo: venv  ## generate clips, train, sample and write a report to runs/demo
	$(PY) -m flowley_jax.demo --out runs/demo $(ARGS)

included-model: demo  ## make the model that comes with the package from the demonstration (5 minutes more)
	$(PY) -m flowley_jax.demo.included --config.start.weights=runs/demo/train --out runs/demo/included_model $(ARGS)
	rm -rf flowley_jax/pretrained/impacts && cp -r runs/demo/included_model flowley_jax/pretrained/impacts

ablation: venv  ## compare attention variants, or with ARGS="--study learning" ways to learn, over three seeds (hours; resumes)
	$(PY) -m benchmarks.ablation --out runs/ablation $(ARGS)

benchmark-psca: .tpu  ## measure PSCA on this machine and with the TPU compiler (2 minutes on an idle machine)
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} PYTHONPATH=.tpu:. GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(PY) -m benchmarks.psca $(ARGS)

benchmark-reading: venv  ## measure how fast this machine reads batches (5 minutes, 5 GB of disk)
	$(PY) -m benchmarks.reading $(ARGS)

benchmark-train-step: .torch  ## measure forward pass, step and sampling next to PyTorch (20 minutes on an idle machine)
	PYTHONPATH=.torch:. GLIBC_TUNABLES=$(KEPT_MEMORY) $(PY) -m benchmarks.train_step $(ARGS)

benchmark-sample: venv  ## measure every stage of sampling at the published sizes (30 minutes on an idle machine)
	GLIBC_TUNABLES=$(KEPT_MEMORY) $(PY) -m benchmarks.sample $(ARGS)

benchmark-guidance: venv  ## measure sounds against network evaluations, of the runs in ARGS="--run RUN …" (10 minutes a run)
	$(PY) -m benchmarks.guidance $(ARGS)

benchmark-ranking: venv  ## measure how well --candidates finds the best sound, of the runs in ARGS="--run RUN …" (3 minutes a run)
	$(PY) -m benchmarks.ranking $(ARGS)

benchmark-kept-parts: venv  ## measure level and timbre where a kept sound meets a sampled one, after make demo (2 minutes)
	$(PY) -m benchmarks.kept_parts $(ARGS)

benchmark-long-clips: venv  ## measure sounds of long videos, and their cost, over three seeds in runs/long (hours; resumes)
	$(PY) -m benchmarks.long_clips $(ARGS)

benchmark-extract: venv  ## measure how fast this machine extracts records (20 minutes on an idle machine)
	$(PY) -m benchmarks.extract $(ARGS)

benchmark-evaluate: venv  ## measure the networks, the reading and the memory of an evaluation (15 minutes on an idle machine)
	$(PY) -m benchmarks.evaluate $(ARGS)

compile-table: .tpu  ## compile the training step of every size for TPU slices (over an hour; resumes)
	JAX_PLATFORMS=cpu PYTHONPATH=.tpu:. $(PY) -m benchmarks.compile_table $(ARGS)

lint: venv  ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

lock: venv  ## resolve pyproject.toml again into requirements.lock
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --extra dev \
	  pyproject.toml --output-file requirements.lock
	echo '$(APP)' | tr ' ' '\n' | $(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --constraint requirements.lock --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  - --output-file requirements-app.lock

clean:  ## remove .venv, caches and builds, but not runs/
	rm -rf $(VENV) .app .tpu .torch build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
