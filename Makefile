# `make help` lists what there is to make.

# The one release binary: static, so that it runs on whatever Linux the build host has.
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/$(TRIPLE)/release/sower
DIST := sower-$(VERSION)-$(TRIPLE)
# A node of Kubernetes, mounts and a Nix store are root's business.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo env "PATH=$$PATH")
HAS_GO = printf '%s\n' go1.24 "$$(go env GOVERSION 2>/dev/null)" | sort -VC

.DEFAULT_GOAL := help
.PHONY: help demo test test-parts test-live test-cluster test-dist test-packages cluster lint fmt build dist bench bench-archives bench-deploy soak proof powercut restart memcap bench-image book fuzz

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## a push runs the declared pipeline on real parts, shown on this terminal
	@scripts/parts.sh demo
	@$(MAKE) --no-print-directory build
	@cargo build --quiet --package sower-demo
	@if $(HAS_GO); then tests/kubernetes/cluster.sh build; fi
	@exec $(AS_ROOT) $(TARGET)/debug/sower-demo --sower $(RELEASE)

test: ## all tests, after formatting and lints, where Go is also on a real Kubernetes; installs the parts that are missing
	@scripts/parts.sh test
	@tests/kubernetes/suite.sh begin
	@$(MAKE) --no-print-directory lint
	cargo test --workspace --no-fail-fast
	@tests/kubernetes/suite.sh end

test-parts: ## installs what `make test` needs and is missing
	@scripts/parts.sh test

test-live: ## the scenarios of the stand-in against a real Gitea: SOWER_TEST_GITEA=/path/to/gitea
	@test -x "$(SOWER_TEST_GITEA)" || { echo 'make test-live: set SOWER_TEST_GITEA to a Gitea binary' >&2; exit 2; }
	@scripts/parts.sh test
	cargo test --features live-tests --test live --no-fail-fast
	cargo test --features live-tests --test image --no-fail-fast gitea

test-cluster: ## the deployment tests against a real Kubernetes (builds it the first time; needs Go 1.24)
	@scripts/parts.sh test cluster
	@tests/kubernetes/cluster.sh build
	@exec $(AS_ROOT) tests/kubernetes/cluster.sh run cargo test --no-fail-fast --test kubernetes_cluster -- --ignored

test-dist: dist ## the static binary in a chroot that holds nothing else
	@scripts/parts.sh test
	@cargo build --quiet --package sower-demo
	@$(AS_ROOT) tests/dist.sh $(TARGET)/dist/$(DIST)/sower $(TARGET)/debug/sower-forge

cluster: ## start the Kubernetes of the tests and leave it running (`tests/kubernetes/cluster.sh down` ends it)
	@scripts/parts.sh cluster
	@tests/kubernetes/cluster.sh build
	@$(AS_ROOT) tests/kubernetes/cluster.sh up

lint: ## formatting and lints, as the tests want them
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

fmt: ## format the code
	cargo fmt --all

# linux_getrandom: the system call itself. Elsewise a static binary finds none and wants /dev/urandom.
# no-eh-frame-hdr: an index for unwinding, of 150 KB, that nothing here asks: a panic says its place and aborts.
# pack-relative-relocs: a position-independent program has 20,000 of them, of 24 bytes each if they are not packed.
build: ## the release binary, static
	@RUSTFLAGS='-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--no-eh-frame-hdr --cfg getrandom_backend="linux_getrandom"' cargo build --release --target $(TRIPLE) --package sower

dist: build ## a tarball and a Debian package: static binary, manual pages, completions, services, SHA256SUMS
	@scripts/parts.sh dist
	@scripts/dist.sh $(RELEASE) $(DIST) $(VERSION) $(TARGET)

test-packages: ## what `make dist` has made, installed, upgraded and removed in chroots (Debian, busybox); needs root
	@scripts/parts.sh packages
	@cargo build --quiet --package sower-demo
	@$(AS_ROOT) tests/packages.sh $(TARGET)

book: ## the documentation as HTML in target/book; needs mdbook (cargo install mdbook)
	@command -v mdbook >/dev/null || { echo 'make book: mdbook is not there: cargo install mdbook' >&2; exit 2; }
	@mdbook build docs
	@python3 scripts/book.py check $(TARGET)/book

fuzz: ## ten minutes of each fuzz target; needs a nightly Rust and cargo-fuzz (FUZZ_SECONDS=600)
	@for target in workflow expression commands environment; do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(or $(FUZZ_SECONDS),600) -rss_limit_mb=1024 -timeout=10 || exit 1; \
	done

bench-image: ## the figures of image pushes, beside those of skopeo and, if Go builds it, crane
	@scripts/parts.sh test bench
	@$(MAKE) --no-print-directory build
	@command -v go >/dev/null && test ! -x $(TARGET)/parts/bin/crane && mkdir -p $(TARGET)/parts/bin && \
		GOBIN=$(abspath $(TARGET))/parts/bin go install github.com/google/go-containerregistry/cmd/crane@v0.22.1 || true
	@python3 benches/image.py --sower $(RELEASE) $$(test ! -x $(TARGET)/parts/bin/crane || echo --crane $(TARGET)/parts/bin/crane)
soak: ## kills daemons and jobs and breaks the network for MINUTES (10), and counts what is lost
	@$(MAKE) --no-print-directory build
	@cargo build --quiet --package sower-test-support --bin sower-soak
	@$(TARGET)/debug/sower-soak --sower $(RELEASE) --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

proof: ## numbered rows through a real Gitea, the daemon killed, Gitea away: SOWER_TEST_GITEA=/path/to/gitea
	@test -x "$(SOWER_TEST_GITEA)" || { echo 'make proof: set SOWER_TEST_GITEA to a Gitea binary' >&2; exit 2; }
	@$(MAKE) --no-print-directory build
	@cargo build --quiet --package sower-test-support --bin sower-proof
	@$(TARGET)/debug/sower-proof --sower $(RELEASE) --gitea $(SOWER_TEST_GITEA) $(if $(SEED),--seed $(SEED))

powercut: ## a virtual machine runs jobs and its power is cut, CUTS (20) times
	@scripts/parts.sh powercut
	@$(MAKE) --no-print-directory build
	@cargo build --quiet --package sower-test-support --bin sower-powercut
	@$(TARGET)/debug/sower-powercut --sower $(RELEASE) --kernel $(TARGET)/parts/powercut/boot/vmlinuz-* \
		--modules $(TARGET)/parts/powercut/lib/modules --cuts $(or $(CUTS),20) $(if $(SEED),--seed $(SEED))

restart: ## restarts the service in the middle of jobs, in virtual machines with systemd and with OpenRC (ROOTS=bookworm/systemd); root
	@scripts/parts.sh restart
	@$(MAKE) --no-print-directory build
	@cargo build --quiet --package sower-test-support --bin sower-restart
	@$(AS_ROOT) $(TARGET)/debug/sower-restart --sower $(RELEASE) --config runner-config \
		--kernel $(TARGET)/parts/powercut/boot/vmlinuz-* --modules $(TARGET)/parts/powercut/lib/modules \
		--roots $(TARGET)/parts/restart $(addprefix --only ,$(ROOTS))

memcap: ## processes of 200 MB in jobs of 64 MB, TIMES (100), on this host and in a virtual machine
	@scripts/parts.sh powercut
	@$(MAKE) --no-print-directory build
	@cargo build --quiet --package sower-test-support --bin sower-memcap
	@$(TARGET)/debug/sower-memcap --sower $(RELEASE) --times $(or $(TIMES),100)
	@$(TARGET)/debug/sower-memcap --sower $(RELEASE) --times $(or $(TIMES),100) \
		--kernel $(TARGET)/parts/powercut/boot/vmlinuz-* --modules $(TARGET)/parts/powercut/lib/modules

# ACT_DATA=act/pkg/runner/testdata and ACTIONS=clones of actions/checkout and its kin add what needs them.
bench: ## the figures, beside those of act in the same run
	@scripts/parts.sh bench
	@$(MAKE) --no-print-directory build
	@cargo build --quiet --package sower-demo
	@missed=0; \
	python3 benches/bench.py --sower $(RELEASE) --act $(TARGET)/parts/act/bin/act --forge $(TARGET)/debug/sower-forge || missed=1; \
	python3 benches/language.py --sower $(RELEASE) $(if $(ACT_DATA),--act-data $(ACT_DATA)) $(if $(ACTIONS),--actions $(ACTIONS)) || missed=1; \
	python3 benches/archives.py --sower $(RELEASE) --archive $(TARGET)/parts/libHSghc.a || missed=1; \
	exit $$missed

bench-archives: ## the figures of static archives alone, beside ar and sha256sum
	@scripts/parts.sh archives
	@$(MAKE) --no-print-directory build
	@python3 benches/archives.py --sower $(RELEASE) --archive $(TARGET)/parts/libHSghc.a
	@SOWER_CUTS=all cargo test --test archive cuts_of_every_flavour -- --nocapture
	@SOWER_KILLS=200 cargo test --test archive_mend killed_at_any_moment -- --nocapture

bench-deploy: ## the figures of deployments, on the Kubernetes that `make cluster` has started
	@python3 benches/deploy.py --sower $(RELEASE) --kubeconfig $(TARGET)/kubernetes/run/kubeconfig --bin $(TARGET)/parts/bin
