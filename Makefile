# `make help` lists the targets.

LISTEN ?= 127.0.0.1:8080
DATA ?= .cache/demo

# A library of the user's own, see docker/onnxruntime.sh.
OWN_RUNTIME := $(ORT_DYLIB_PATH)
ifdef CARGO_TARGET_DIR
# Programs outside of target/ do not look into .cache by themselves.
export ORT_DYLIB_PATH ?= $(CURDIR)/.cache/onnxruntime/libonnxruntime.so
endif

# What `make` alone does.
.DEFAULT_GOAL := help

.PHONY: help check serve test test-cluster engines haproxy soak fuzz lint cuda-check image-test supply-chain advisories onnxruntime postgres clients browser openvino seaweedfs test-openvino bench bench-models bench-train bench-model bench-segment bench-anomaly bench-duplicates bench-index bench-databases bench-lance bench-arrow screenshots

## List the targets
help:
	@awk '/^## / { text = substr($$0, 4); next } \
		/^[a-z][a-z-]*:/ { if (text) printf "  make %-14s %s\n", substr($$1, 1, length($$1) - 1), text; text = "" }' Makefile

## Check format, lints and unit tests: run it before each commit
# dino-fuzz has no unit tests, and needs both libraries compiled once more, beside their own tests.
check: onnxruntime
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace --exclude dino-fuzz --lib

## Build the server, and serve the demo model, or MODEL=hf://OWNER/NAME, on http://127.0.0.1:8080 (LISTEN=ADDRESS:PORT for another place)
# Without the optional features, which take a third of the time that the first build takes.
serve: onnxruntime
ifdef MODEL
	cargo build --release --no-default-features --bins
	exec models/serve.sh $(MODEL) target/release $(LISTEN) $(if $(filter-out .cache/demo,$(DATA)),$(DATA))
else
	cargo build --release --no-default-features --bin dino-server
	target/release/dino-server restore --from models/demo/gallery.dino --data-dir $(DATA) --if-missing
	exec target/release/dino-server serve --model demo=models/demo --data-dir $(DATA) --listen $(LISTEN)
endif

## Run all tests
# First the program of `make serve`, so that the whole one stays in target/debug.
test: clients browser onnxruntime postgres seaweedfs test-openvino
	cargo test --workspace --no-default-features --test without_features
	cargo test --workspace

## Flood a server for ten minutes, then send 100,000 requests; two servers behind HAProxy for ten minutes; reports memory and statuses
soak: onnxruntime postgres haproxy
	SOAK_SECONDS=600 SOAK_REQUESTS=100000 cargo test --release --workspace --test http soak -- --nocapture --test-threads 1
	SOAK_SECONDS=600 cargo test --release --workspace --test http balanced -- --ignored --nocapture

## Run the targets of tests/fuzz under libFuzzer, FUZZ_SECONDS each; needs a C++ compiler
FUZZ_SECONDS ?= 60
fuzz: onnxruntime .cache/tools/fuzz
	cargo run --package dino-fuzz --bin seeds -- .cache/fuzz
	for target in picture request checkpoint; do \
		PATH="$(CURDIR)/.cache/tools/bin:$$PATH" cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none --features libfuzzer $$target \
			.cache/fuzz/$$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 -max_len=250000 || exit 1; \
	done

.cache/tools/fuzz:
	cargo install --locked --root .cache/tools cargo-fuzz@0.13.1
	touch $@

## Check format, lints and documentation (warnings are errors), and the files of docker/
lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	docker/check.sh

## Build the trainer for CUDA with a compiler from PyPI; needs no GPU, takes half an hour
cuda-check:
	docker/cuda-check.sh .cache/cuda

## Build the server's image without a container engine, and try it; on Debian, as root
image-test:
	docker/image-test.sh .cache/image

## Measure the server beside ONNX Runtime alone, OpenVINO and two Python servers
bench: .cache/bench-serve/ready onnxruntime test-openvino
	cargo build --profile dist --workspace --bins
	DINO_OPENVINO_LIBRARY=$(CURDIR)/.cache/test-openvino/libonnxruntime_providers_openvino_plugin.so \
	.cache/bench-serve/bin/python tests/bench/serve.py --server target/dist/dino-server --trainer target/dist/dino-train \
		--load target/dist/load --limit target/dist/limit --photo tests/photos/china.jpg

.cache/bench-serve/ready: tests/bench/requirements.txt
	python3 -m venv .cache/bench-serve
	.cache/bench-serve/bin/pip install --quiet --requirement tests/bench/requirements.txt
	touch $@

## Measure the shapes of public backbones in f32, int8 and on OpenVINO
bench-models: .cache/bench-serve/ready onnxruntime test-openvino
	cargo build --release --workspace --bins
	DINO_OPENVINO_LIBRARY=$(CURDIR)/.cache/test-openvino/libonnxruntime_providers_openvino_plugin.so \
	.cache/bench-serve/bin/python tests/bench/models.py --trainer target/release/dino-train

## Measure training steps and augmentation beside PyTorch and torchvision
bench-train: .cache/bench/ready
	cargo build --profile dist --workspace --bins
	.cache/bench/bin/python training/bench/compare.py --step target/dist/train_step \
		--augment target/dist/augment --pictures .cache/bench/pictures

## Measure the exported graph beside PyTorch's export, PyTorch and torch.compile, and int8 beside f32
bench-model: .cache/bench/ready onnxruntime
	cargo build --profile dist --workspace --bins
	.cache/bench/bin/python training/bench/model.py --program target/dist/dino-train

.cache/bench/ready: training/bench/requirements.txt
	python3 -m venv .cache/bench
	.cache/bench/bin/pip install --quiet --requirement training/bench/requirements.txt
	mkdir -p .cache/bench/pictures
	cp tests/photos/*.jpg .cache/bench/pictures
	touch $@

## Measure collections beside hnswlib, faiss and usearch; half an hour, 4 GB of disk
bench-index: onnxruntime .cache/bench-index/ready
	cargo build --profile dist --workspace --bins
	.cache/bench-index/bin/python tests/bench/index.py

.cache/bench-index/ready: tests/bench/requirements-index.txt
	python3 -m venv .cache/bench-index
	.cache/bench-index/bin/pip install --quiet --requirement tests/bench/requirements-index.txt
	touch $@

## Measure one PostgreSQL beside three that hold a collection together; ROWS=200000
bench-databases: onnxruntime postgres .cache/bench-databases/ready
	cargo build --profile dist --workspace --bins
	.cache/bench-databases/bin/python tests/bench/databases.py --rows $(or $(ROWS),200000)

.cache/bench-databases/ready: tests/bench/requirements-databases.txt
	python3 -m venv .cache/bench-databases
	.cache/bench-databases/bin/pip install --quiet --requirement tests/bench/requirements-databases.txt
	touch $@

## Measure what LanceDB keeps of the promises of collections, on a folder and on S3
bench-lance: seaweedfs
	[ -e .cache/lance/ready ] || { python3 -m venv .cache/lance && .cache/lance/bin/pip install --quiet --requirement tests/bench/lance/requirements.txt && touch .cache/lance/ready; }
	.cache/lance/bin/python tests/bench/lance/probe.py --weed .cache/seaweedfs/weed

## Measure how busy sessions are that a pipe, Ray and Spark feed through `embed --arrow`
bench-arrow: onnxruntime engines
	cargo build --profile dist --workspace --bins
	.cache/engines/bin/python tests/bench/arrow.py --program target/dist/dino-server --trainer target/dist/dino-train

## Measure the methods of /segment
bench-segment: onnxruntime
	cargo run --profile dist --package dino-bench --no-default-features --bin segment_time

## Measure what /anomaly takes beside inference, and its scan beside faiss
bench-anomaly: .cache/bench-index/ready
	cargo build --profile dist --package dino-bench --no-default-features --bin anomaly_time
	OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 .cache/bench-index/bin/python tests/bench/patches.py

## Measure what /duplicates takes for 100,000 items
bench-duplicates:
	cargo run --profile dist --package dino-bench --no-default-features --bin duplicates_time

## Compare exports with timm's and transformers' own networks of full size; an hour, 6 GB of disk; LARGE=1 also the largest, 14 GB of memory
test-weights: .cache/weights/ready onnxruntime
	cargo build --release --bin dino-train
	.cache/weights/bin/python training/tests/libraries/compare.py --program target/release/dino-train \
		--only "$(ONLY)" $(if $(LARGE),--large)

.cache/weights/ready: training/tests/libraries/requirements.txt
	python3 -m venv .cache/weights
	.cache/weights/bin/pip install --quiet --requirement training/tests/libraries/requirements.txt
	touch $@

## Test with what clusters run: HAProxy, Open MPI, a Slurm of one node, torchrun, Ray, Spark; 6 GB for PyTorch, 1.5 GB for the last two
test-cluster: onnxruntime postgres haproxy engines .cache/weights/ready
	command -v mpirun >/dev/null || tests/packages.sh "The tests of launchers need Open MPI" openmpi-bin
	cargo test --workspace --test launchers -- --ignored --test-threads 1
	cargo test --workspace --test cluster -- --test-threads 1
	cargo test --workspace --test http balanced -- --ignored --nocapture

engines:
	tests/cluster/engines.sh .cache/engines

haproxy:
	command -v haproxy >/dev/null || tests/packages.sh "The tests of two servers need HAProxy" haproxy

## Draw the pictures of the web page in docs/
screenshots: onnxruntime browser
	cargo test --workspace --test http -- --ignored screenshots

## Install the browser that tests use
browser:
	tests/browser.sh

## Install the HTTP clients that tests use
clients:
	tests/clients/install.sh .cache/clients

## Check licences and sources of dependencies, and write bills of materials to .cache/sbom
supply-chain: .cache/tools/ready
	.cache/tools/bin/cargo-deny --workspace --exclude dino-fuzz --exclude dino-bench --all-features check bans licenses sources
	.cache/tools/bin/cargo-cyclonedx cyclonedx --format json --all-features
	mkdir -p .cache/sbom
	mv dino-server.cdx.json training/dino-train.cdx.json .cache/sbom
	rm -f tests/fuzz/dino-fuzz.cdx.json tests/bench/dino-bench.cdx.json

## Look for known vulnerabilities of dependencies in the database of RustSec
advisories: .cache/tools/ready
	.cache/tools/bin/cargo-deny --workspace --exclude dino-fuzz --exclude dino-bench --all-features check advisories

.cache/tools/ready:
	cargo install --locked --root .cache/tools cargo-deny@0.20.2 cargo-cyclonedx@0.5.9
	touch $@

## Download the ONNX Runtime library into .cache
onnxruntime:
	ORT_DYLIB_PATH="$(OWN_RUNTIME)" docker/onnxruntime.sh .cache/onnxruntime

## Download OpenVINO's plug-in for ONNX Runtime into .cache, where `--device auto` and `openvino` find it
openvino:
	docker/openvino.sh .cache/openvino

# Where only the tests find it: a program that the user starts should not change its device after `make test`.
test-openvino:
	docker/openvino.sh .cache/test-openvino

## Download PostgreSQL with pgvector, for tests, into .cache
postgres:
	docker/postgres.sh .cache/postgres

## Download SeaweedFS, which speaks S3, for tests, into .cache
seaweedfs:
	docker/seaweedfs.sh .cache/seaweedfs
