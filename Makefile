# make serve · make test · make lint · make soak · make fuzz · make bench · make bench-train · make bench-model · make bench-segment · make screenshots · make bench-index

LISTEN ?= 127.0.0.1:8080
DATA ?= .cache/demo

# A library of the user's own, see docker/onnxruntime.sh.
OWN_RUNTIME := $(ORT_DYLIB_PATH)
ifdef CARGO_TARGET_DIR
# Programs outside of target/ do not look into .cache by themselves.
export ORT_DYLIB_PATH ?= $(CURDIR)/.cache/onnxruntime/libonnxruntime.so
endif

.PHONY: serve test soak fuzz lint cuda-check image-test supply-chain advisories onnxruntime postgres clients browser bench bench-train bench-model bench-segment bench-index screenshots

## Build, and serve the demo model with its gallery on http://$(LISTEN)
serve: onnxruntime
	cargo build --release --bin dino-server
	target/release/dino-server restore --from models/demo/gallery.dino --data-dir $(DATA) --if-missing
	exec target/release/dino-server serve --model demo=models/demo --data-dir $(DATA) --listen $(LISTEN)

## Run all tests
test: clients browser onnxruntime postgres
	cargo test --workspace

## The flood of tests/http/soak.rs for ten minutes, and 100,000 answered requests, with their reports
soak: onnxruntime
	SOAK_SECONDS=600 SOAK_REQUESTS=100000 cargo test --release --workspace --test http soak -- --nocapture --test-threads 1

## The targets of tests/fuzz under libFuzzer, FUZZ_SECONDS each; wants a C++ compiler, and builds its tool first
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

## Formatting, lints and documentation, warnings are errors; then the files of docker/
lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	docker/check.sh

## Build the trainer for CUDA, with a compiler from PyPI; needs no GPU (about half an hour of processor time)
cuda-check:
	docker/cuda-check.sh .cache/cuda

## Build the server's image without a container engine, start it and ask it; on Debian, as root
image-test:
	docker/image-test.sh .cache/image

## The server beside ONNX Runtime alone and two Python servers, on these cores
bench: .cache/bench-serve/ready onnxruntime
	cargo build --release --workspace --bins --examples
	.cache/bench-serve/bin/python tests/bench/serve.py --server target/release/dino-server --trainer target/release/dino-train \
		--load target/release/examples/load --limit target/release/examples/limit --photo tests/photos/china.jpg

.cache/bench-serve/ready: tests/bench/requirements.txt
	python3 -m venv .cache/bench-serve
	.cache/bench-serve/bin/pip install --quiet --requirement tests/bench/requirements.txt
	touch $@

## A whole training step and the augmentation beside PyTorch and torchvision, on these cores
bench-train: .cache/bench/ready
	cargo build --release --workspace --examples
	.cache/bench/bin/python training/bench/compare.py --step target/release/examples/train_step \
		--augment target/release/examples/augment --pictures .cache/bench/pictures

## The exported graph beside PyTorch's own export, PyTorch and torch.compile, and int8 beside f32, on these cores
bench-model: .cache/bench/ready onnxruntime
	cargo build --release --workspace --bins
	.cache/bench/bin/python training/bench/model.py --program target/release/dino-train

.cache/bench/ready: training/bench/requirements.txt
	python3 -m venv .cache/bench
	.cache/bench/bin/pip install --quiet --requirement training/bench/requirements.txt
	mkdir -p .cache/bench/pictures
	cp tests/photos/*.jpg .cache/bench/pictures
	touch $@

## Collections beside hnswlib, faiss and usearch: graphs, exact search, a million vectors (about half an hour on two quiet cores, 4 GB of disk)
bench-index: onnxruntime .cache/bench-index/ready
	cargo build --release --workspace --bins --examples
	.cache/bench-index/bin/python tests/bench/index.py

.cache/bench-index/ready: tests/bench/requirements-index.txt
	python3 -m venv .cache/bench-index
	.cache/bench-index/bin/pip install --quiet --requirement tests/bench/requirements-index.txt
	touch $@

## What the methods of /segment take beside inference
bench-segment: onnxruntime
	cargo run --release --package dino-server --example segment_time

## The pictures of the page in docs/
screenshots: onnxruntime browser
	cargo test --workspace --test http -- --ignored screenshots

## Install what the tests of the page need
browser:
	tests/browser.sh

## Install what the tests ask the server with
clients:
	tests/clients/install.sh .cache/clients

## Licences, sources and versions of all dependencies, and a bill of materials for each program in .cache/sbom; builds its tools first
supply-chain: .cache/tools/ready
	.cache/tools/bin/cargo-deny --workspace --exclude dino-fuzz --all-features check bans licenses sources
	.cache/tools/bin/cargo-cyclonedx cyclonedx --format json --all-features
	mkdir -p .cache/sbom
	mv dino-server.cdx.json training/dino-train.cdx.json .cache/sbom
	rm -f tests/fuzz/dino-fuzz.cdx.json

## Known vulnerabilities of dependencies; fetches the database of RustSec
advisories: .cache/tools/ready
	.cache/tools/bin/cargo-deny --workspace --exclude dino-fuzz --all-features check advisories

.cache/tools/ready:
	cargo install --locked --root .cache/tools cargo-deny@0.20.2 cargo-cyclonedx@0.5.9
	touch $@

## Fetch the ONNX Runtime library into the cache
onnxruntime:
	ORT_DYLIB_PATH="$(OWN_RUNTIME)" docker/onnxruntime.sh .cache/onnxruntime

## Fetch PostgreSQL with pgvector, for the tests, into the cache
postgres:
	docker/postgres.sh .cache/postgres
