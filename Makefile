# ringbuf: `make help` lists the targets.

ifneq ($(words $(CURDIR)),1)
$(error make cannot work in a directory with a space in its name: $(CURDIR))
endif

# ARCH=arm64 works for vmtest, static, tool and dist. clang then builds with Debian's
# libraries.
HOST_ARCH := $(shell go env GOHOSTARCH 2>/dev/null)
ARCH := $(HOST_ARCH)
ifeq ($(ARCH),$(HOST_ARCH))
OUTPUT := $(CURDIR)/output
PKG_CONFIG := pkg-config
else ifeq ($(filter $(ARCH),amd64 arm64),)
$(error ARCH=$(ARCH) is not known: amd64 and arm64 are, as Go and Debian name them)
else ifneq ($(filter-out static vmtest tool dist libstatic libbpf bpf bpf-objects help clean, \
		$(MAKECMDGOALS)),)
$(error ARCH=$(ARCH) is not this machine's processor, and is for make vmtest, static, tool and dist)
else
OUTPUT := $(CURDIR)/output/$(ARCH)
SYSROOT := $(OUTPUT)/sysroot
TRIPLET := $(subst amd64,x86_64,$(subst arm64,aarch64,$(ARCH)))-linux-gnu
LLD := -fuse-ld=lld
export CC := clang --target=$(TRIPLET) --sysroot=$(SYSROOT)
export PKG_CONFIG := env PKG_CONFIG_LIBDIR=$(SYSROOT)/usr/lib/$(TRIPLET)/pkgconfig pkg-config
export GOARCH := $(ARCH)
export CGO_ENABLED := 1
endif
PREFIX := $(OUTPUT)/libbpf

# The directories that have a go.mod.
MODULES := . bench capture cmd/ringbuf examples/migration metrics ship ship/kafka tools

# With these flags libbpfgo and this package find libbpf. See `make env`.
export CGO_CFLAGS := -I$(PREFIX)/include
export CGO_LDFLAGS := $(LLD) -L$(PREFIX)/lib -lbpf -lelf -lz

BPF_SOURCES := $(wildcard bench/*.bpf.c examples/*/*.bpf.c internal/*/*.bpf.c \
	cmd/ringbuf/internal/*/*.bpf.c selftest/*/*.bpf.c)
BPF_OBJECTS := $(BPF_SOURCES:.c=.o)
BPF_HEADER := bpf/ringbuf.bpf.h
C_SOURCES := $(wildcard *.c *.h scripts/*.c internal/tso/*.c cmd/ringbuf/internal/*/*.h) \
	$(BPF_SOURCES) $(BPF_HEADER)

# Only commands that load BPF programs run as root.
ifneq ($(shell id -u),0)
SUDO := sudo -E env 'PATH=$(PATH)'
TEST_EXEC := -exec "$(SUDO)"
endif

# A static libelf needs the libraries that it was built with, such as libzstd. See also
# scripts/libeu.c. Nothing calls the function in scripts/capabilities.c, so the linker
# must be told to include it.
STATIC_FLAGS = -trimpath -buildvcs=false -tags netgo,osusergo -ldflags '-s -w -linkmode external \
	-extldflags "-static $(shell $(PKG_CONFIG) --static --libs libelf) \
	-u make_permitted_effective -lstatic"'

MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
		sed -E 's/^([a-z-]+):.*## /\1\t/; s/\$$\$$/$$/g' | expand -t 16

.PHONY: deps
deps: ## install everything that is needed (with apt-get, on Debian and Ubuntu)
	@scripts/deps.sh
	@scripts/deps.sh clang=clang clang-format=clang-format

.PHONY: libbpf
libbpf: ## build static libbpf (LIBBPF_SRC=dir chooses the source, =system the distribution's)
	@scripts/deps.sh
ifdef SYSROOT
	@scripts/deps.sh clang=clang ld.lld=lld
	@scripts/sysroot.sh $(ARCH) $(SYSROOT)
endif
	@LIBBPF_SRC='$(LIBBPF_SRC)' scripts/libbpf.sh $(PREFIX)

.PHONY: bpf
bpf: libbpf ## compile the BPF programs
	@scripts/deps.sh clang=clang
	@$(MAKE) --no-print-directory bpf-objects

cmd/ringbuf/internal/kinds/kinds.bpf.o: cmd/ringbuf/internal/kinds/kinds.h

.PHONY: bpf-objects
bpf-objects: $(BPF_OBJECTS)
	@:

# With target bpf, clang does not look into the multiarch directory.
%.bpf.o: %.bpf.c $(BPF_HEADER) $(PREFIX)/built
	clang -g -O2 -Wall -Werror -target bpf -I$(PREFIX)/include -I$(dir $(BPF_HEADER)) \
		-idirafter /usr/include/$(shell cc -print-multiarch 2>/dev/null) -c $< -o $@

# If this target fails, an eval of its output fails too.
.PHONY: env
env: ## print shell exports for go commands: eval "$$(make -s env)"
	@$(MAKE) --no-print-directory bpf >&2 || { echo false; exit 1; }
	@echo "export CGO_CFLAGS='$(CGO_CFLAGS)'"
	@echo "export CGO_LDFLAGS='$(CGO_LDFLAGS)'"

.PHONY: demo
demo: bpf ## show programs being executed on this kernel, for ten seconds
	@go build -o $(OUTPUT)/execsnoop ./examples/execsnoop
	@$(SUDO) $(OUTPUT)/execsnoop -demo

.PHONY: test
test: lint selftest asan test-tool test-ship test-metrics ## lint, selftests, tests, benchmarks once
	@scripts/deps.sh spin=spin
	go test -race -count=1 -timeout 5m -bench . -benchtime 1x $(TEST_EXEC) -v ./...
	cd bench && go test -count=1 -timeout 5m $(TEST_EXEC) -v ./...
	cd examples/migration && go test -count=1 -timeout 5m $(TEST_EXEC) -v ./...

.PHONY: test-metrics
test-metrics: bpf ## test module metrics, its dashboard, and its alerts with a real Prometheus
	@scripts/deps.sh prometheus=prometheus promtool=prometheus
	cd metrics && go test -race -count=1 -timeout 5m $(TEST_EXEC) -v ./...

.PHONY: test-tool
test-tool: bpf ## test the tool and what it records: cmd/ringbuf, capture
	@scripts/deps.sh tmux=tmux setpriv=util-linux tshark=tshark
	cd capture && go test -race -count=1 -timeout 5m -v ./...
	cd cmd/ringbuf && go test -p 1 -count=1 -timeout 10m $(TEST_EXEC) -v ./...

.PHONY: test-ship
test-ship: bpf ## test module ship in a minute: kill nats-servers and shippers under load
	cd ship && go test -count=1 -timeout 10m $(TEST_EXEC) -v ./...

.PHONY: ship-stress
ship-stress: bpf ## kill shippers 50 times and servers 20 times, also in a cluster of three
	cd ship && go test -count=1 -timeout 1h $(TEST_EXEC) -v . -long

.PHONY: ship-bench
ship-bench: bpf ## measure shipping: records a second, and time from submit to stream
	cd ship && go test -count=1 -timeout 30m $(TEST_EXEC) -v . -run "^$$" -bench . -benchtime 1x

.PHONY: ship-demo
ship-demo: tool bpf ## ship executed programs to a stream, and kill the shipper meanwhile
	@cd cmd/ringbuf && go build -o $(OUTPUT)/ship-demo ./internal/shipdemo
	@$(SUDO) $(OUTPUT)/ship-demo $(OUTPUT)/ringbuf examples/execsnoop/execsnoop.bpf.o

# Give a number (2000x) if each failure must be real: with a time, Go sometimes reports
# the end of that time as a failure, "context deadline exceeded". Interesting inputs are
# kept in output/fuzz, and minimized for one second each. Go's default is a minute, in
# which it tries nothing else.
FUZZTIME := 1m
.PHONY: fuzz
fuzz: bpf ## try random inputs, FUZZTIME=1m for each fuzz test; testdata/fuzz gets failing ones
	@go test -c -fuzz . -o $(OUTPUT)/fuzz.test .
	@status=0; for test in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\).*/\1/p' fuzz_test.go); do \
		echo "$$test:"; \
		$(SUDO) $(OUTPUT)/fuzz.test -test.run '^$$' -test.fuzz "^$$test\$$" -test.fuzztime $(FUZZTIME) \
			-test.fuzzminimizetime 1s -test.fuzzcachedir $(OUTPUT)/fuzz || status=1; \
	done; \
	$(SUDO) chown -R --reference=Makefile $(OUTPUT)/fuzz testdata; exit $$status

# The second half takes a quarter of an hour, because without the fence in
# ringbuf_cgo_wait.c only one wakeup in a million is lost.
DURATION := 5m
.PHONY: stress
stress: bpf ## try to lose samples (DURATION=5m with -race, and without), wakeups and memory
	@go test -c -o $(OUTPUT)/ringbuf.test . && go test -c -race -o $(OUTPUT)/ringbuf-race.test .
	@echo 'With the race detector, for $(DURATION):'
	@$(SUDO) $(OUTPUT)/ringbuf-race.test -test.v -test.timeout 0 -test.run '^TestStress$$' -stress $(DURATION)
	@echo 'Without, for $(DURATION):'
	@$(SUDO) $(OUTPUT)/ringbuf.test -test.v -test.timeout 0 -test.run '^TestStress$$' -stress $(DURATION)
	@echo 'Other tests at length, for a quarter of an hour:'
	@$(SUDO) $(OUTPUT)/ringbuf.test -test.v -test.timeout 0 -rallies 5000000 -scribble 30s -cycles 100000 \
		-test.run '^Test(NoWakeupIsLost.*|NoScribbling.*|OpenAndClose.*|AStoppedReader.*)$$' -test.skip /without

.PHONY: model
model: ## check all of internal/model with spin, and show how broken variants lose wakeups
	@scripts/deps.sh spin=spin
	go test -count=1 -timeout 10m -v ./internal/model -whole

# Go adds checks of its own: a program that leaks C memory fails at exit, and cgocheck2
# finds Go pointers that Go stores in C memory. The flag is in GOFLAGS for go commands
# that tests run. The linker's flags are for programs that tests compile without go. (With
# LIBBPF_SRC=system libbpf itself has no sanitizers.) In libbpf, alignment is not checked:
# it loads from any consumer position that somebody sets, aligned or not, which processors
# allow.
ASAN := $(OUTPUT)/asan
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
.PHONY: asan
asan: bpf ## run unit tests and kernel tests with AddressSanitizer and UBSan, also in libbpf
	@LIBBPF_SRC='$(LIBBPF_SRC)' scripts/libbpf.sh $(ASAN)/libbpf '$(SANITIZE) -fno-sanitize=alignment'
	GOFLAGS="$$(go env GOFLAGS) -asan" GOEXPERIMENT=cgocheck2 CGO_CFLAGS='-I$(ASAN)/libbpf/include -g $(SANITIZE)' \
		CGO_LDFLAGS='-L$(ASAN)/libbpf/lib -lbpf -lelf -lz $(SANITIZE)' \
		go test -count=1 -timeout 5m -o $(ASAN)/ $(TEST_EXEC) -v . ./internal/tso

# LIBBPF is all, or ends (the oldest libbpf with the lowest libbpfgo, the newest with the
# newest), or versions. LIBBPF_GIT is a repository of libbpf that git can clone. RUN and
# SKIP choose tests.
LIBBPF := all
RUN := .
.PHONY: compat
compat: bpf ## run the package's tests with libbpf 1.3 to the newest, and lowest and newest libbpfgo
	@LIBBPF='$(LIBBPF)' LIBBPF_GIT='$(LIBBPF_GIT)' scripts/compat.sh $(OUTPUT)/compat \
		-run '$(RUN)' $(if $(SKIP),-skip '$(SKIP)') $(TEST_EXEC)

# Slightly less than the coverage when this was written.
COVER_GO := 96
COVER_C := 95
.PHONY: cover
cover: bpf ## print the Go and C code that the package's tests do not reach, and percentages
	@CC=clang scripts/deps.sh llvm-cov=llvm llvm-profdata=llvm sanitizer/asan_interface.h=libclang-rt-dev
	@scripts/cover.sh $(OUTPUT)/cover $(COVER_GO) $(COVER_C) $(TEST_EXEC)

.PHONY: selftest
selftest: bpf ## run the end-to-end programs on this kernel
	@rm -rf $(OUTPUT)/selftests
	@go build -o $(OUTPUT)/ ./selftest ./examples/flightrecorder
	@go build -o $(OUTPUT)/selftests/ ./selftest/*/
	@$(SUDO) $(OUTPUT)/selftest

# The objects that static programs need besides libbpf.
.PHONY: libstatic
libstatic: libbpf
	@for part in libeu capabilities; do \
		$(CC) -c scripts/$$part.c -o $(PREFIX)/lib/$$part.o && \
			ar rc $(PREFIX)/lib/libstatic.a $(PREFIX)/lib/$$part.o || exit; \
	done

# The binaries do not depend on the directory in which they were built.
.PHONY: static
static: bpf libstatic ## build static binaries of the demo and the selftests, in output/static
	@rm -rf $(OUTPUT)/static
	@go build $(STATIC_FLAGS) -o $(OUTPUT)/static/ ./examples/execsnoop ./examples/flightrecorder \
		./selftest
	@go build $(STATIC_FLAGS) -o $(OUTPUT)/static/selftests/ ./selftest/*/

.PHONY: tool
tool: libstatic ## build the tool, static and with libbpf, in output/ringbuf
	@cd cmd/ringbuf && go build $(STATIC_FLAGS) -o $(OUTPUT)/ringbuf .
	@echo $(OUTPUT)/ringbuf

# The default is the newest version in the changelog.
VERSION = $(shell sed -n 's/^\#\# \(v[^ ]*\).*/\1/p' CHANGELOG.md | head -n 1)
.PHONY: release-check
release-check: libbpf ## build each module of a release as its users get it (VERSION=v0.1.0)
	cd tools && go test -count=1 -timeout 10m ./...
	@go -C tools run ./release check $(VERSION)

.PHONY: release
release: libbpf ## check a release, tag it, and print how to publish that (VERSION=v0.1.0)
	@go -C tools run ./release tag $(VERSION)

DIST := $(CURDIR)/output/dist
.PHONY: dist
dist: tool ## pack the static tool, in output/dist (VERSION=v0.1.0 ARCH=arm64)
	@mkdir -p $(DIST)
	@tar --owner=0 --group=0 --numeric-owner --mtime=@0 -I 'gzip -n' \
		-cf $(DIST)/ringbuf-$(VERSION)-linux-$(ARCH).tar.gz -C $(OUTPUT) ringbuf -C $(CURDIR) LICENSE

.PHONY: dist-image
dist-image: docker ## build the image, and pack it for docker load, in output/dist
	@mkdir -p $(DIST)
	@$(SUDO) scripts/docker.sh save >$(DIST)/image.tar
	@gzip -nc $(DIST)/image.tar >$(DIST)/ringbuf-$(VERSION)-image-$(ARCH).tar.gz
	@rm $(DIST)/image.tar

# Only the copying may need root: make tool && sudo make install.
prefix := /usr/local
.PHONY: install
install: ## install the tool, its man pages and completions (prefix=/usr/local DESTDIR=)
	@[ -x $(OUTPUT)/ringbuf ] || $(MAKE) --no-print-directory tool
	@install -D -m 0755 $(OUTPUT)/ringbuf $(DESTDIR)$(prefix)/bin/ringbuf
	@$(OUTPUT)/ringbuf man $(DESTDIR)$(prefix)/share/man/man1
	@install -d $(addprefix $(DESTDIR)$(prefix)/share/,bash-completion/completions \
		zsh/site-functions fish/vendor_completions.d)
	@$(OUTPUT)/ringbuf completion bash >$(DESTDIR)$(prefix)/share/bash-completion/completions/ringbuf
	@$(OUTPUT)/ringbuf completion zsh >$(DESTDIR)$(prefix)/share/zsh/site-functions/_ringbuf
	@$(OUTPUT)/ringbuf completion fish \
		>$(DESTDIR)$(prefix)/share/fish/vendor_completions.d/ringbuf.fish

.PHONY: pictures
pictures: tool bpf ## redraw docs/tool/*.svg: the tool on a terminal, while the examples run
	@scripts/deps.sh tmux=tmux
	@go build -o $(OUTPUT)/ ./examples/execsnoop ./examples/sharded
	@cd cmd/ringbuf && go build -o $(OUTPUT)/ ./internal/picture
	@$(SUDO) scripts/pictures.sh $(OUTPUT) docs/tool

# Versions of Debian's kernels, or paths.
KERNEL := 5.10 6.1 6.12 newest
# Number of machines that run at the same time.
JOBS := 1
QEMU_amd64 := qemu-system-x86_64=qemu-system-x86
QEMU_arm64 := qemu-system-aarch64=qemu-system-arm
.PHONY: vmtest
vmtest: ## run selftests and tests in virtual machines (KERNEL='6.1 ./bzImage' ARCH=arm64 JOBS=2)
	@scripts/deps.sh $(QEMU_$(ARCH)) cpio=cpio
	@mkdir -p $(OUTPUT)/kernels
	@scripts/kernel.sh $(ARCH) $(OUTPUT)/kernels $(KERNEL) >$(OUTPUT)/kernels/chosen
	@$(MAKE) --no-print-directory static
	@go test -c $(STATIC_FLAGS) -o $(OUTPUT)/static/ringbuf.test .
	@cd cmd/ringbuf && go build $(STATIC_FLAGS) -o $(OUTPUT)/static/ . && \
		go test -c $(STATIC_FLAGS) -o $(OUTPUT)/static/tool.test . && \
		go test -c $(STATIC_FLAGS) -o $(OUTPUT)/static/tail.test ./internal/tail
	@CGO_ENABLED=0 go build -o $(OUTPUT)/static/init ./internal/vmtest
	@cd $(OUTPUT)/static && find . | cpio --quiet -o -H newc -R 0:0 >../initramfs
	@GOARCH= go build -o $(OUTPUT)/vmtest ./internal/vmtest
	@GOARCH= $(OUTPUT)/vmtest -arch $(ARCH) -j $(JOBS) $(OUTPUT)/initramfs \
		$$(cat $(OUTPUT)/kernels/chosen)

.PHONY: docker
docker: $(filter docker-base,$(MAKECMDGOALS)) ## build image ringbuf, run its selftests (BASE=image)
	@mkdir -p $(OUTPUT)
	@BASE='$(BASE)' $(SUDO) scripts/docker.sh build $(DOCKER_FLAGS)

.PHONY: docker-base
docker-base: ## make a base image with mmdebstrap, for machines without a registry
	@$(SUDO) scripts/docker.sh base

# bench compares with the newest libbpfgo. The rest of the repository requires the lowest.
.PHONY: libbpf-of-bench
libbpf-of-bench: bpf
	@grep -qE 'MINOR_VERSION ([5-9]|[1-9][0-9])' $(PREFIX)/include/bpf/libbpf_version.h || { \
		echo "error: module bench has libbpfgo v0.9.2, which needs libbpf 1.5 or newer (all but" \
			"make test, lint and bench do with 1.3)" >&2; exit 1; }

.PHONY: bench
bench: libbpf-of-bench ## compare with other readers in about 20 minutes, and write docs/bench
	@cd bench && go build -o $(OUTPUT)/bench .
	@mkdir -p docs/bench
	@$(SUDO) $(OUTPUT)/bench -out docs/bench

.PHONY: bench-quick
bench-quick: libbpf-of-bench ## run a short bench, and print which bars are met
	@cd bench && go build -o $(OUTPUT)/bench .
	@$(SUDO) $(OUTPUT)/bench -quick

.PHONY: bench-writers
bench-writers: libbpf-of-bench ## compare writers into a user ring buffer: docs/writer.md
	@cd bench && go build -o $(OUTPUT)/bench .
	@$(SUDO) $(OUTPUT)/bench -writers -run 100ms

.PHONY: lint
lint: libbpf-of-bench ## run go vet, staticcheck, gofmt, clang-format, and actionlint for workflows
	@scripts/deps.sh clang-format=clang-format
	@set -e; for module in $(MODULES); do \
		echo "go vet, staticcheck: $$module"; cd $(CURDIR)/$$module; \
		go vet ./...; go tool -modfile=$(CURDIR)/tools/go.mod staticcheck ./...; \
	done
	@unformatted=$$(gofmt -l .); \
		[ -z "$$unformatted" ] || { echo "not gofmt-clean: $$unformatted"; exit 1; }
	clang-format --dry-run --Werror $(C_SOURCES)
	go tool -modfile=tools/go.mod actionlint .github/workflows/*.yml

.PHONY: fmt
fmt: ## format Go and C
	@scripts/deps.sh clang-format=clang-format
	gofmt -w .
	clang-format -i $(C_SOURCES)

.PHONY: clean
clean: ## remove everything that was built
	rm -rf $(OUTPUT) $(BPF_OBJECTS)
