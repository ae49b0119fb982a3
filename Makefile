# make demo and make test are all that a newcomer needs. Everything below works with Go and make alone, but for
# `make interop`, which also needs Python, and what is for CUDA.

GO      ?= go
BZD      = bin/bzd
PYTHON  ?= python3
export CGO_ENABLED = 0

.PHONY: all build cuda cuda-carry cuda-test ptx ptxas demo rehearse devnet test devnet-test arm64 race lint fuzz generate genesis \
	genesis-verify bench bench-learning bench-content bench-frontier interop agreement-sweep nightly clean

all: build

build:
	$(GO) build -trimpath -o $(BZD) ./cmd/bzd

# The same program with the CUDA backend. Needs a C compiler and CUDA's headers: those of CUDA_HOME, or else downloaded by
# pip. It links without a driver and starts without one.
CC         ?= cc
WHEELS      = out/cuda
CUDA_HEADERS = $(if $(CUDA_HOME),$(CUDA_HOME)/include,$(CURDIR)/$(WHEELS)/headers/nvidia/cuda_runtime/include)
CUDA_ENV    = CGO_ENABLED=1 CGO_CFLAGS="-O2 -I$(CUDA_HEADERS)" CGO_LDFLAGS="-L$(CURDIR)/$(WHEELS)/lib"
cuda: $(WHEELS)/lib/libcuda.a
	$(CUDA_ENV) $(GO) build -trimpath -tags cuda,netgo,osusergo -o $(BZD)-cuda ./cmd/bzd

# What bench/cuda/run.sh needs on a machine with a card that has no Go: bin/cuda.tgz.
CARRY = out/carry
cuda-carry: $(WHEELS)/lib/libcuda.a
	@mkdir -p $(CARRY)
	$(CUDA_ENV) $(GO) build -trimpath -ldflags='-s -w' -tags cuda,netgo,osusergo -o $(CARRY)/bzd-cuda ./cmd/bzd
	$(CUDA_ENV) $(GO) test -c -trimpath -ldflags='-s -w' -tags cuda,netgo,osusergo -o $(CARRY)/cuda.test ./training/cuda
	$(CUDA_ENV) $(GO) test -c -trimpath -ldflags='-s -w' -tags cuda,netgo,osusergo -o $(CARRY)/cuda-driver.test ./training/cuda/driver
	@mkdir -p bin
	tar -C $(CARRY) -czf bin/cuda.tgz bzd-cuda cuda.test cuda-driver.test

# What the tag cuda adds is tested against a driver that computes on this machine.
cuda-test: $(WHEELS)/lib/libcuda.a
	$(CUDA_ENV) $(GO) vet -tags cuda ./training/cuda/... ./cmd/bzd
	$(CUDA_ENV) $(GO) test -tags cuda ./training/cuda/driver
	GOBIN=$(CURDIR)/out $(GO) install $(STATICCHECK)
	$(CUDA_ENV) out/staticcheck -tags cuda ./training/cuda/driver ./cmd/bzd

$(WHEELS)/lib/libcuda.a: $(wildcard training/cuda/libcuda/*) $(if $(CUDA_HOME),,$(WHEELS)/headers)
	CC="$(CC)" training/cuda/libcuda/build "$(CUDA_HEADERS)" $(WHEELS)/lib

$(WHEELS)/%: training/cuda/wheels/%.txt
	@mkdir -p $(WHEELS)
	PYTHON="$(PYTHON)" training/cuda/wheels/fetch $* $@

# Compiles the CUDA kernels to the PTX that is checked in.
ptx: $(WHEELS)/nvrtc
	$(PYTHON) training/cuda/kernels/build $(WHEELS)/nvrtc

# Assembles that PTX for the cards people have.
ptxas: $(WHEELS)/ptxas $(WHEELS)/ptxas-oldest
	$(PYTHON) training/cuda/kernels/assemble $(WHEELS)/ptxas $(WHEELS)/ptxas-oldest

# A whole network of miners and validators on this machine, over real sockets.
demo: devnet

devnet: build
	$(BZD) devnet

# The network's job for three cycles without a network.
rehearse: build
	$(BZD) rehearse --cycles 3 --miners 2

# The networks of node/devnet come last and by themselves: sharing the processors they would miss their deadlines.
test:
	$(GO) test $$($(GO) list ./... | grep -v /node/devnet$$)
	$(MAKE) devnet-test

devnet-test:
	$(GO) test -count=1 ./node/devnet

# The same program for ARM64, and in an emulator the tests that must give the same bits there.
arm64:
	GO="$(GO)" .ci/arm64

# The race detector needs cgo. By itself it looks at the packages that use goroutines.
RACE ?= ./training ./training/data ./validation ./content ./content/blockstore ./content/exchange ./content/gateway \
	./consensus/runner ./consensus/wire ./consensus/beacon ./consensus/chain/... ./p2p/...
race:
	CGO_ENABLED=1 $(GO) test -race -short $(RACE)

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.7.0
lint:
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "not gofmt-ed: $$bad"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# Runs every fuzz target for FUZZTIME.
FUZZTIME ?= 10s
fuzz:
	@set -e; for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p; \
		done; done

# Assembly of the kernels.
generate:
	$(GO) generate ./...

# Trains the embedded base model anew. A changed base is another genesis.
genesis: build
	$(BZD) genesis train

# Trains the base again and compares it with the embedded one, bit for bit.
genesis-verify: build
	$(BZD) genesis verify

bench:
	$(GO) test -run '^$$' -bench . -benchtime 1s ./training/cpu ./training/model

# Fifty cycles, one miner per group: the curves of the fixed probe, as a table and as bench/learning.svg.
bench-learning: build
	$(BZD) rehearse --cycles 50 --miners 1 --plot bench/learning.svg

# Size of deltas against what the network learns in fifty cycles: a table and bench/frontier.svg.
bench-frontier: build
	bench/frontier.sh $(BZD)

# How fast checkpoints are imported and fetched, beside kubo (which needs the module proxy).
bench-content:
	bench/content/run.sh

# kubo as it was released, for comparison (needs the module proxy).
out/ipfs: bench/kubo/go.mod
	cd bench/kubo && $(GO) build -trimpath -o ../../$@ github.com/ipfs/kubo/cmd/ipfs

# Loads checkpoints in transformers and compares them with bzd, and models of every family that transformers writes; a
# network trains those of FAMILIES. Kubo fetches a network's checkpoint and gives it back. VENV must have torch and
# transformers; it is made if missing, and so is another beside it with transformers 5 (needs a package registry).
VENV ?= out/venv
interop: build out/ipfs
	bench/interop.sh $(BZD) $(VENV) $(PYTHON) out/ipfs

# Ten thousand hostile networks, and the larger forms of the agreement's other properties.
agreement-sweep:
	$(GO) test ./consensus/sim -count=1 -timeout 60m -runs 10000 -long

nightly: export FAMILIES = olmoe mixtral qwen2_moe qwen3_moe
nightly: export CI = 1
nightly: test lint genesis-verify interop
	BZD_EMULATE=all $(GO) test ./training/cuda ./training/cuda/emu
	$(MAKE) race RACE=./...
	BZD_NIGHTLY=1 $(GO) test -count=1 -timeout 30m -run TestAgreement ./node/devnet
	BZD_NIGHTLY=1 $(GO) test -count=1 -timeout 30m -run TestSimulatedHosts -v ./cmd/bzd
	$(GO) test -count=1 -timeout 30m -run TestExplore ./consensus -explore-more 1
	$(MAKE) fuzz FUZZTIME=2m
	$(GO) test -run Kill -count=20 ./content/blockstore ./content/exchange
	$(MAKE) agreement-sweep
	$(MAKE) bench-learning
	bench/content/run.sh --size 1GiB --rounds 1 --brief

clean:
	rm -rf bin out
