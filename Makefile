# Everything is built from the Go module proxy and Debian's packages; results
# are cached in $BATON_CACHE (default ~/.cache/baton). `make help` lists targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X baton/internal/process.Version=$(VERSION)
ARCH := $(shell go env GOARCH)

# Tests on real containers share one machine: two packages at a time leave each
# enough of it to meet its deadlines.
TEST_PACKAGES_AT_ONCE ?= 2
TEST_TIMEOUT ?= 40m
E2E := ./test/e2e

# The programs of baton's own in the bundle. They carry neither version nor path, so that they stay the same as long as their sources do:
# other content is another runtime to those who unpack it.
OWN_BUILD := mkdir -p build/out/own && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o build/out/own/

.PHONY: build
build: bundle ## bin/baton, all that a user copies
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/baton ./cmd/baton
	@echo "built bin/baton $(VERSION)"

.PHONY: preflight
preflight:
	@build/preflight.sh build

.PHONY: runtime
runtime: preflight ## containerd, its shim and runc, as pinned (minutes when not cached)
	@build/runtime.sh

.PHONY: bundle
bundle: preflight ## the runtime, compressed, where the binary embeds it
	@dir=$$(build/runtime.sh) && $(OWN_BUILD) ./cmd/baton-shim ./cmd/baton-logger ./cmd/baton-fence ./cmd/baton-edge && \
	  go run ./build/pack -from "$$dir" -own build/out/own -to build/bundle/blob

.PHONY: images
images: preflight ## images for tests and examples, as archives in build/out/images
	go run ./build/images/cmd -out build/out/images

.PHONY: pebble
pebble: ## the ACME server that tests obtain certificates from
	cd build/pebble && CGO_ENABLED=0 go build -trimpath -o ../out/pebble/ \
	  github.com/letsencrypt/pebble/v2/cmd/pebble github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv

.PHONY: test
test: build images pebble ## all tests, those on real containers included (as root)
	@build/preflight.sh run
	@echo "== packages"
	packages=$$(go list ./... | grep -v /test/e2e); go test -p $(TEST_PACKAGES_AT_ONCE) -timeout $(TEST_TIMEOUT) $$packages
	@echo "== whole systems on real containers"
	go test -v -count=1 -timeout $(TEST_TIMEOUT) $(E2E)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@bad=$$(git ls-files -co --exclude-standard '*.go' | while read -r f; do [[ ! -e $$f ]] || gofmt -l "$$f"; done); \
	  [[ -z $$bad ]] || { echo "not formatted (gofmt -w mends it):"; echo "$$bad"; exit 1; }
	go vet ./...
	go tool -modfile=build/staticcheck/go.mod staticcheck ./...

.PHONY: bench
bench: build images ## measurements, as ratios in one run (as root)
	@build/preflight.sh run
	go run ./bench
	go test -run '^$$' -bench . -benchtime 1x -timeout 60m -p 1 ./internal/manager/consensus ./internal/node/network

SOAK ?= 1000
DEPLOYMENTS ?= 100
.PHONY: soak
soak: build images ## a thousand rolling redeploys on three nodes and what they leave behind, then a hundred of the shop under load (as root)
	@build/preflight.sh run
	BATON_SOAK=$(SOAK) go test -v -count=1 -timeout 2h -run 'TestSoak$$' $(E2E)
	BATON_DEPLOYMENTS=$(DEPLOYMENTS) go test -v -count=1 -timeout 2h -run 'TestDeploymentsFailNoRequest$$' $(E2E)

.PHONY: demo
demo: ## a node with the shop running on it, and what to try
	@build/preflight.sh run
	@$(MAKE) --no-print-directory build images
	@build/demo.sh up

.PHONY: demo-down
demo-down: ## removes every trace of the demo
	@build/demo.sh down

.PHONY: release
release: build ## dist/: an archive of the binary, and its checksum
	rm -rf dist && mkdir -p dist/baton
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w $(LDFLAGS)' -o dist/baton/baton ./cmd/baton
	cp LICENSE README.md dist/baton/
	tar -C dist --sort=name --owner=0 --group=0 --numeric-owner -czf dist/baton-$(VERSION)-linux-$(ARCH).tar.gz baton
	rm -r dist/baton
	cd dist && sha256sum *.tar.gz > SHA256SUMS && cat SHA256SUMS

.PHONY: clean
clean: ## removes what was built here; the cache stays
	rm -rf bin dist build/out
	find build/bundle/blob -type f ! -name README.md -delete

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
