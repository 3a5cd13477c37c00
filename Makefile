# make serve · make test · make lint · make bench · make bench-train · make bench-model · make bench-segment · make screenshots

LISTEN ?= 127.0.0.1:8080
DATA ?= .cache/demo

.PHONY: serve test lint cuda-check image-test onnxruntime postgres clients browser bench bench-train bench-model bench-segment screenshots

## Build, and serve the demo model with its gallery on http://$(LISTEN)
serve: onnxruntime
	cargo build --release --package dino-server
	target/release/dino-server restore --from models/demo/gallery.dino --data-dir $(DATA) --if-missing
	exec target/release/dino-server serve --model demo=models/demo --data-dir $(DATA) --listen $(LISTEN)

## Run all tests
test: clients browser onnxruntime postgres
	cargo test --workspace

## Formatting, lints and documentation, warnings are errors; then the files of docker/
lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	docker/check.sh

## Build the trainer for CUDA, with a compiler from PyPI; needs no GPU (about 10 minutes of processor time)
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
	cargo build --release --package dino-train
	.cache/bench/bin/python training/bench/model.py --program target/release/dino-train

.cache/bench/ready: training/bench/requirements.txt
	python3 -m venv .cache/bench
	.cache/bench/bin/pip install --quiet --requirement training/bench/requirements.txt
	mkdir -p .cache/bench/pictures
	cp tests/photos/*.jpg .cache/bench/pictures
	touch $@

## What the methods of /segment take beside inference
bench-segment: onnxruntime
	cargo run --release --package dino-server --example segment_time

## The pictures of the page in docs/
screenshots: onnxruntime browser
	cargo test --package dino-server --test http -- --ignored screenshots

## Install what the tests of the page need
browser:
	tests/browser.sh

## Install what the tests ask the server with
clients:
	tests/clients/install.sh .cache/clients

## Fetch the ONNX Runtime library into the cache
onnxruntime:
	docker/onnxruntime.sh .cache/onnxruntime

## Fetch PostgreSQL with pgvector, for the tests, into the cache
postgres:
	docker/postgres.sh .cache/postgres
