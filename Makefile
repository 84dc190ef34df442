# What README.md names. Everything else is cargo: `cargo test -p rota-store`, `cargo xtask --help`.
SHELL := /bin/bash

.PHONY: help quickstart test bench quality fmt lint

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: ## build, start a cluster of two nodes here, run the word count example
	@scripts/quickstart.sh

test: ## everything that must pass: formats, lints, generated files, all tests, the quickstart
	@scripts/test.sh

bench: ## measure a release build; each figure against its limit in the same run
	@scripts/bench.sh

quality: ## the scheduler on published traces (ROTA_TRACES names their folder)
	cargo bench -p rota-simulate --bench quality

fmt: ## format all code
	cargo fmt --all

lint: ## what CI checks without running tests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
