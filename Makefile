PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: env demo test check lint docs wheel vendor clean

demo: $(INSTALLED)
	$(BIN)/mobilenets demo --output runs/demo --overwrite

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --cov --cov-report=term:skip-covered

check: lint test docs wheel

env: $(INSTALLED)

# Python compiles what it imports; all of it, of which most is never used, takes a minute more.
# TORCH=cpu takes the smaller CPU build, 0.2 GB instead of several.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	$(BIN)/pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
endif
	$(BIN)/pip install --quiet --no-compile --editable ".[dev]"
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck docs/examples/*.sh
	$(BIN)/yamllint --strict docs/examples

docs: $(INSTALLED)
	$(BIN)/zensical build --strict --clean

# The built wheel must install and answer in an environment that has nothing else but what it declares. That is linked
# from the environment here, where pip has found it: installed once more it would be gigabytes and minutes.
wheel: $(INSTALLED)
	rm -rf dist build/wheel-env
	$(BIN)/python -m build --wheel --outdir dist .
	$(PYTHON) -m venv --without-pip build/wheel-env
	$(BIN)/pip --python build/wheel-env/bin/python install --quiet --no-deps dist/*.whl
	$(BIN)/python .ci/wheel_env.py build/wheel-env
	$(BIN)/pip --python build/wheel-env/bin/python check
	cd build/wheel-env && bin/mobilenets cost 0.5-160
	rm -rf build/wheel-env

# What pages carry with them, from npm into the package; its README names the versions.
VENDORED := d3-array@3.2.5 d3-geo@3.1.2 topojson-client@3.1.0 world-atlas@2.0.2 onnxruntime-web@1.30.0 swagger-ui-dist@5.35.0
vendor:
	npm install --prefix build/vendor --no-save --ignore-scripts $(VENDORED)
	cd build/vendor/node_modules && cp d3-array/dist/d3-array.min.js d3-geo/dist/d3-geo.min.js \
	  topojson-client/dist/topojson-client.min.js world-atlas/countries-110m.json \
	  onnxruntime-web/dist/ort.wasm.min.mjs onnxruntime-web/dist/ort-wasm-simd-threaded.mjs \
	  onnxruntime-web/dist/ort-wasm-simd-threaded.wasm onnxruntime-web/dist/ort.jspi.min.mjs \
	  onnxruntime-web/dist/ort-wasm-simd-threaded.jspi.mjs onnxruntime-web/dist/ort-wasm-simd-threaded.jspi.wasm \
	  swagger-ui-dist/swagger-ui-bundle.js swagger-ui-dist/swagger-ui.css \
	  $(CURDIR)/src/mobilenets/web/vendor/

clean:
	rm -rf build dist site .cache
