# layerfarm: `make run` demonstrates it, `make test` tests it, `make help` lists the other targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The caller's settings for another Python would break ours; without bytecode each process of the tests would compile them again.
unexport PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE

# make run: the tree to build (default: the Python library of the environment), the store (an OCI layout), and the tag.
ROOTFS ?=
STORE ?= .cache/store
TAG ?= demo

# make test: number of processes; some of them wait for a farm. Test files start in the order of tests/conftest.py. The slowest
# tests are listed at the end. REQUIRE_ALL=1 fails if a test cannot run because a package or a permission is missing.
JOBS ?= 4
XDIST = -n $(JOBS) $(DIST)
DIST = --dist loadfile --no-loadscope-reorder --durations=60 --durations-min=5
PYTEST_ARGS ?=
REQUIRE_ALL ?=
# MACHINES=1: tests/machines too. Without it they are left out, because a fresh machine takes minutes to create their system disk.
MACHINES ?=
WITHOUT_MACHINES = $(if $(MACHINES),,--ignore tests/machines)

# make fuzz: duration in seconds. SEED= repeats a run; without it a seed is chosen and printed. With MUTATIONS= the run ends after
# that many, and SECONDS is its time limit. TARGETS= selects kinds of input (layers: tar gzip zstd chunked toc estargz stargz-toc; gotar: tar headers,
# compared with Go's archive/tar).
SECONDS ?= $(if $(MUTATIONS),3600,60)
SEED ?=
MUTATIONS ?=
TARGETS ?=

.PHONY: help run test unit coverage fuzz explore torture torture-store powercut nfs smb glusterfs farmcut pulls bench bench-catalog bench-scale mixed profile scaling docs man pictures newcomer release lint format packages core environment locks clean
.DELETE_ON_ERROR:

help:
	@echo 'make run [ROOTFS=DIR] [STORE=DIR] [TAG=NAME]  build an image of DIR on a farm on this machine, unpack it, compare'
	@echo 'make test                                     lint, types, all tests, and the unit tests on every installed Python;'
	@echo '                                              installs the Debian packages it needs; MACHINES=1: some power cuts too'
	@echo 'make unit                                     the unit tests only'
	@echo 'make coverage                                 coverage of jobs/: at least 98 % of lines and 95 % of branches'
	@echo 'make fuzz [SECONDS=60] [SEED=N]                mutated layers, documents and manifests; keeps its findings'
	@echo 'make fuzz MUTATIONS=1000000 [TARGETS="tar"]    a number of mutations, about ten minutes; gotar: tar compared with Go'
	@echo 'make explore [SCHEDULES=1000000] [SEED=N]      the job engine under random interleavings and losses'
	@echo 'make torture [SECONDS=600] [SEED=N]            real jobs while workers, Redis and the disk fail; counts losses (0)'
	@echo 'make torture-store [WRITERS=64] [TAGS=1000]    one store with many writers, gc and readers; counts losses (0)'
	@echo 'make powercut [CUTS=1000] [FILESYSTEMS=xfs] [SEED=N]  machines under QEMU lose power while they use a store; counts losses (0)'
	@echo 'make nfs [WRITERS=8] [TAGS=25] [SUITE=trixie]   a store on an NFS server, with machines and a server that vanish'
	@echo 'make smb, make glusterfs [WRITERS=8] [TAGS=25]    the same on these file servers, which lose tags'
	@echo 'make farmcut [BUILDS=20] [SEED=N]               Redis, workers and the NFS server lose power while jobs run'
	@echo 'make pulls [SUITE=trixie] [CLIENT=podman]       clients of Debian 12 and 13 pull layers in part: a table'
	@echo 'make bench [QUICK=1] [TREE=…] [COLD=1]         layerfarm compared with umoci, tar, sha256sum, cp: a table with targets'
	@echo '                                              and limits, of five kinds of trees, on tmpfs and (root) on ext4'
	@echo 'make profile [TREE=minbase]                    a flame graph of each operation, in .cache/profile'
	@echo 'make scaling                                   measure scaling, and write tests/bench/SCALING.md'
	@echo 'make bench-catalog                             40 images re-layered together, and with methods of other tools: a table'
	@echo 'make mixed                                     a catalog of all that registries hold, with a layer of 1.5 GB'
	@echo 'make bench-scale [PLAN=1000,10000] [RUN=100,1000]  work of catalogs of many synthetic and of many tiny images'
	@echo 'make bench-catalog KILLS=1 [SEED=N]            … while workers and the registry are killed; the result must be equal'
	@echo 'make docs                                     the documentation as a site in build/site; warnings are errors'
	@echo 'make man                                      the man pages in docs/man, and the generated tables, figures and schemas in docs'
	@echo 'make pictures [TO=DIRECTORY]                the picture of a report in docs/; or the pages of a sample report, to look at'
	@echo 'make newcomer [SUITES=trixie] [USERS=root]     follow the README in bare Debians, as root and as a user: a table'
	@echo 'make release [IMAGE=no] [MIRROR=URL]           the artifacts of a release in dist/; the image needs root'
	@echo 'make lint | make format                       ruff and mypy | reformat the files'
	@echo 'make locks                                    pin the newest allowed dependencies'
	@echo 'make clean                                    remove the virtual environment and the caches'

run: core
	@$(BIN)/layerfarm demo $(if $(ROOTFS),--rootfs '$(ROOTFS)') --store '$(STORE)' --tag '$(TAG)'

test: PACKAGES := $(if $(MACHINES),machines)
test: packages lint
	PATH="$(abspath $(BIN)):$$PATH" LAYERFARM_REQUIRE_ALL=$(REQUIRE_ALL) \
	    $(BIN)/python -m pytest $(XDIST) $(WITHOUT_MACHINES) $(PYTEST_ARGS) tests
	$(BIN)/python -m tests.pythons -n 2 $(DIST) $(PYTEST_ARGS)
	@$(if $(MACHINES),,echo 'NOT RUN: tests/machines; make test MACHINES=1 runs them')

# The man pages, one for each command, and the generated tables, figures and schemas of docs/. They are committed.
man: environment
	$(BIN)/python -m tests.man

# Needs chromium. docs/screenshots/report.png is committed; it is made again when the page changes.
pictures: packages environment
	$(BIN)/python -m tests.report_pictures $(TO)

# Follow the README in bare Debians; needs root and debootstrap. SUITES, USERS and ONLY select.
newcomer:
	@$(PYTHON) -m tests.newcomer $(if $(SUITES),--suites $(SUITES)) $(if $(USERS),--users $(USERS)) \
	    $(if $(ONLY),--targets $(ONLY))

unit: environment
	$(BIN)/python -m pytest $(XDIST) $(PYTEST_ARGS) tests/unit

# Processes started by tests, also those of ordinary users, write their data into one directory. Those of the fuzzer cannot,
# because they are in a chroot.
coverage: packages environment
	rm -rf .cache/coverage
	mkdir -p .cache
	mkdir -m 1777 .cache/coverage
	PATH="$(abspath $(BIN)):$$PATH" LAYERFARM_SANDBOX=off COVERAGE_FILE='$(abspath .cache/coverage/data)' \
	    $(BIN)/python -m pytest $(XDIST) --ignore tests/fuzz --ignore tests/machines --cov --cov-report=term \
	    --cov-report=json:.cache/coverage/report.json $(PYTEST_ARGS) tests
	$(BIN)/python -m tests.coverage_floors .cache/coverage/report.json

fuzz: packages environment
	SECONDS='$(SECONDS)' MUTATIONS='$(MUTATIONS)' TARGETS='$(TARGETS)' SEED='$(SEED)' PROCESSES='$(JOBS)' \
	    $(BIN)/python -m tests.fuzz

# A schedule takes about 3 ms of a processor. `make test` includes every schedule with a single deviation.
explore: SCHEDULES ?= 100000
explore: environment
	$(BIN)/python -m tests.explorer --schedules '$(SCHEDULES)' $(addprefix --seed=,$(SEED))

# One round of all faults takes about 350 s on 2 processors. Foreign messages, 1,000 jobs, and IMAGES that share LAYERS on WORKERS
# that are killed follow.
torture: IMAGES ?= 200
torture: LAYERS ?= 10
torture: WORKERS ?= 4
torture: SECONDS := $(if $(filter command environment,$(origin SECONDS)),$(SECONDS),600)
torture: environment
	PATH="$(abspath $(BIN)):$$PATH" SECONDS='$(SECONDS)' SEED='$(SEED)' $(BIN)/python -m tests.farm.torture
	PATH="$(abspath $(BIN)):$$PATH" STRANGE_MESSAGES=10000 LOAD_JOBS=1000 SEED='$(SEED)' \
	    $(BIN)/python -m pytest -q tests/farm/test_strangers.py tests/farm/test_load.py
	PATH="$(abspath $(BIN)):$$PATH" IMAGES='$(IMAGES)' LAYERS='$(LAYERS)' WORKERS='$(WORKERS)' SEED='$(SEED)' \
	    $(BIN)/python -m tests.farm.shared_layers

# One store with many writers: first from one host, then from four.
torture-store: WRITERS ?= 64
torture-store: TAGS ?= 1000
torture-store: environment
	for hosts in 1 4; do PATH="$(abspath $(BIN)):$$PATH" WRITERS='$(WRITERS)' TAGS='$(TAGS)' HOSTS=$$hosts \
	    SEED='$(SEED)' $(BIN)/python -m tests.farm.shared_store || exit 1; done

# Emulated machines; the first run creates their system disk in .cache/machines (some minutes, 600 MB). SUITE=trixie: with Debian 13's
# programs and kernel instead of 12's.
powercut nfs smb glusterfs farmcut: PACKAGES := machines
powercut: CUTS ?= 1000
powercut: packages environment
	$(BIN)/python -m tests.machines.powercut --cuts '$(CUTS)' $(addprefix --seed=,$(SEED)) \
	    $(if $(FILESYSTEMS),--filesystems $(FILESYSTEMS))

# A server and three clients under QEMU; WRITERS on each client set TAGS each. ONLY selects trials, each is run TRIALS times.
nfs smb glusterfs farmcut: TRIALS ?= 1
nfs smb glusterfs: WRITERS ?= 8
nfs smb glusterfs: TAGS ?= 25
nfs: packages environment
	$(BIN)/python -m tests.machines.nfs --writers '$(WRITERS)' --tags '$(TAGS)' --times '$(TRIALS)' \
	    $(if $(ONLY),--only $(ONLY))

smb glusterfs: packages environment
	$(BIN)/python -m tests.machines.other_shares $@ --writers '$(WRITERS)' --tags '$(TAGS)' --times '$(TRIALS)' \
	    $(if $(ONLY),--only $(ONLY))

# The same as nfs, and a machine for Redis; a client submits BUILDS, each followed by a recompression, and the others work.
farmcut: BUILDS ?= 20
farmcut: packages environment
	$(BIN)/python -m tests.machines.farm --builds '$(BUILDS)' --times '$(TRIALS)' $(addprefix --seed=,$(SEED)) \
	    $(if $(ONLY),--only $(ONLY))

# Needs root. The first run installs the clients in a Debian 12 and a Debian 13 (2 GB in .cache). SUITE, CLIENT and FORMAT select.
pulls: packages environment
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.pulls $(addprefix --suite=,$(SUITE)) \
	    $(addprefix --client=,$(CLIENT)) $(addprefix --format=,$(FORMAT))

# TREE and OPERATION take several names. The trees large (20 files of 500 MB) and million are measured only if named.
TIMES ?= 5
bench: packages environment
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.bench --times $(TIMES) $(if $(QUICK),--quick) \
	    $(if $(COLD),--cold) $(addprefix --tree=,$(TREE)) $(addprefix --operation=,$(OPERATION))

profile: packages environment
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.bench.profile $(addprefix --tree=,$(TREE)) \
	    $(addprefix --operation=,$(OPERATION))

scaling: environment
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.bench.scaling

# Plans and reports of made-up images, and runs of real tiny ones; PLAN and RUN are lists of numbers of images.
bench-scale: environment
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.bench.scale \
	    $(if $(PLAN),--plan $(PLAN)) $(if $(RUN),--run $(RUN))

mixed: packages environment
	PATH="$(abspath $(BIN)):$$PATH" MIXED_BYTES=1500000000 $(BIN)/python -m pytest -q tests/interop/test_catalog_mixed.py

# The images are made once, from about 700 MB of Debian packages, and kept in .cache. KILLS=1 [SEED=N]: no table; kill workers,
# registry and run at random.
bench-catalog: packages environment
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m tests.bench.catalog \
	    $(if $(KILLS),--kills $(addprefix --seed=,$(SEED)))

docs: environment
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Wheel, sdist, man pages, site, SBOM, container image, and their checksums. The image needs root, debootstrap and crun, and is
# built and run by layerfarm itself. The same commit, and the same state of Debian's archive (MIRROR, a snapshot), give the same bytes.
release: environment
	$(BIN)/python -m tests.release $(if $(filter no,$(IMAGE)),--without-image) $(if $(SUITE),--suite '$(SUITE)') \
	    $(if $(MIRROR),--mirror '$(MIRROR)')

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: environment
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Tools that the interop tests compare with. If they cannot be installed, the other tests still run, and pytest lists at its end
# what could not run.
packages:
	@sh tests/install-packages $(PACKAGES)

# Packages for `make run`, and for everything else. Each is updated if a lock has changed.
CORE_LOCKS := deploy/requirements.txt
ALL_LOCKS := $(CORE_LOCKS) deploy/requirements-extras.txt tests/requirements.txt
core:
	@$(PYTHON) deploy/environment.py $(VENV) $(CORE_LOCKS)

environment:
	@$(PYTHON) deploy/environment.py $(VENV) $(ALL_LOCKS)

locks: environment
	$(BIN)/python -m tests.locks

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis deploy/import/*.egg-info
