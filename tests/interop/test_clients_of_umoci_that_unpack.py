"""Scripts, runtimes and build farms that unpack images with umoci: layerfarm gives their commands the same trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.clients import Client, Run, assert_same, both

# Only the commands are as the clients have them: registries are the layout `base`.
CLIENTS = [
    Client(
        "umoci-raw-unpack(1)",
        "opencontainers/umoci: doc/man/umoci-raw-unpack.1.md",
        """
        skopeo copy oci:base:latest oci:image:latest
        umoci raw unpack --image image rootfs2
        umoci raw runtime-config --image image --rootfs rootfs2 config.json
        umoci raw unpack --image image --rootless rootfs3
        umoci raw runtime-config --image image --rootfs rootfs3 --rootless rootless.json
        """,
    ),
    Client(
        "distrobuilder and LXD's image builder",
        "lxc/distrobuilder: sources/fedora-http.go; canonical/lxd-imagebuilder",
        """
        mkdir fedora
        mv base fedora/image
        mkdir fedora/content
        umoci unpack --keep-dirlinks --image fedora/image:fedora:38 fedora/content
        mkdir built
        rsync -aHASX --devices fedora/content/rootfs/ built
        rm -rf fedora/content
        """,
    ),
    Client(
        "BuildBuddy",
        "buildbuddy-io/buildbuddy: enterprise/server/util/container/container.go",
        """
        root=$(mktemp -d)
        mkdir $root/image
        skopeo copy oci:base:latest oci:$root/image:latest
        mkdir $root/rootfs
        umoci raw unpack --rootless=$([ $(id -u) = 0 ] && echo false || echo true) --image $root/image $root/rootfs
        mv $root/rootfs rootfs-of-the-executor
        mkdir $root/rootfs
        umoci raw unpack --rootless --image $root/image $root/rootfs
        mv $root/rootfs rootless
        """,
    ),
    Client(
        "BuildBuddy's first releases",
        "buildbuddy-io/buildbuddy: enterprise/server/util/container/container.go, f09e84c5",
        """
        mkdir -p unpack/image unpack/bundle
        skopeo copy oci:base:latest oci:unpack/image:latest
        umoci unpack --rootless --image unpack/image unpack/bundle
        """,
    ),
    Client(
        "Charliecloud",
        "hpc/charliecloud: doc/faq.rst",
        """
        skopeo copy oci:base:latest oci:oci:img
        umoci unpack --rootless --image oci:img alpine:3.9
        ls alpine:3.9 | grep -v mtree | grep -v sha256
        cat alpine:3.9/rootfs/etc/os-release
        """,
    ),
    Client(
        "Charliecloud's first ch-pull2dir",
        "hpc/charliecloud: .travis.yml, ch-grow",
        """
        umoci --version | grep -c '^umoci version 0'
        umoci raw unpack --rootless --image base unpacked
        umoci raw unpack --rootless --image base unpacked
        """,
    ),
    Client(
        "openQA's test of rootless runc",
        "os-autoinst/os-autoinst-distri-opensuse: tests/containers/runc.pm",
        """
        skopeo copy oci:base:latest oci:opensuse:tumbleweed
        umoci unpack --rootless --image opensuse:tumbleweed bundle
        cd bundle; cp config.json config.json.backup
        sed -i -e '/"terminal":/ s/: .*/: false,/' config.json
        sed -i -e 's/"sh"/"echo", "42km"/' config.json
        jq -c .process.args,.process.terminal config.json
        """,
    ),
    Client(
        "youki",
        "containers/youki: docs",
        """
        skopeo copy oci:base:latest oci:busybox:latest
        umoci unpack --image busybox:latest bundle
        jq -c '[.root, .process.args]' bundle/config.json
        """,
    ),
    Client(
        "urunc's evaluation suite",
        "urunc-dev/evaluation_suite: internal/runtime/lifecycle/cli_adaptor.go",
        """
        skopeo copy oci:base:latest oci:trial-1:bench
        umoci unpack --image trial-1:bench trial-1-bundle
        """,
    ),
    Client(
        "bima",
        "nubificus/bima: docs/Debugging.md",
        """
        skopeo copy oci:base:latest oci:redis-hvt:latest
        umoci unpack --image redis-hvt:latest bundle
        umoci config --author="Nubificus LTD" --image redis-hvt:latest
        umoci config --config.label="com.urunc.unikernel.hypervisor=hvt" --image redis-hvt:latest
        umoci config --config.label="com.urunc.unikernel.cmdline=$(echo 'redis-server /a.conf' | base64)" \\
            --image redis-hvt:latest
        umoci unpack --image redis-hvt:latest bundle2
        jq -c '.annotations["com.urunc.unikernel.hypervisor"]' bundle2/config.json
        skopeo copy oci:redis-hvt:latest docker-archive:redis-hvt.tar:redis-hvt:annotated
        """,
    ),
    Client(
        "OpenShell",
        "NVIDIA/OpenShell: crates/openshell-driver-vm/scripts/openshell-vm-sandbox-init.sh",
        """
        mkdir payload
        skopeo copy oci:base:latest oci:payload/oci:openshell
        umoci unpack --image payload/oci:openshell partial
        [ -d partial/rootfs ]
        mv partial/rootfs image-root
        rm -rf partial
        """,
    ),
    Client(
        "castletown",
        "joshjms/castletown: scripts/rootfs.sh",
        """
        skopeo copy oci:base:latest oci:_tmp_gcc:15-bookworm
        umoci raw unpack --rootless \\
            --image _tmp_gcc:15-bookworm \\
            _tmp_gcc_15-bookworm
        mkdir -p castletown/images/gcc
        cp -r _tmp_gcc_15-bookworm/* castletown/images/gcc
        """,
    ),
    Client(
        "intuneme",
        "frostyard/intuneme: internal/puller/puller.go",
        """
        tmp=$(mktemp -d)
        skopeo copy oci:base:latest oci:$tmp:latest
        umoci raw unpack --image $tmp:latest machine
        """,
    ),
    Client(
        "a store of artifacts and images",
        "a Go program that pulls ORAS artifacts and falls back to images",
        """
        mkdir -p out/image
        cp -a base out/tmp
        umoci --log error raw unpack --rootless --image out/tmp out/image 2>&1
        """,
    ),
    Client(
        "xm-slurm",
        "xm_slurm/execution.py",
        """
        digest=$(jq -r .manifests[0].digest base/index.json)
        umoci tag --image base:latest $digest
        mkdir -p bundle/1
        umoci raw unpack --rootless --image base:$digest bundle/1
        umoci raw runtime-config --image base:$digest bundle/1/config.json
        umoci rm --image base:$digest
        """,
    ),
    Client(
        "CMC",
        "Fraunhofer-AISEC/cmc: doc/setup.md",
        """
        skopeo copy oci:base:latest oci-archive:image.tar:latest
        mkdir image; tar -xf image.tar -C image
        (cd image; umoci unpack --rootless --image ./:latest bundle)
        """,
    ),
    Client(
        "Azure Linux's tests of images",
        "microsoft/azurelinux: base/images/tests/utils/extract.py",
        """
        skopeo copy oci:base:latest oci-archive:image.tar
        mkdir extract
        skopeo copy oci-archive:image.tar oci:extract/oci-layout:latest
        umoci unpack --rootless --image extract/oci-layout:latest extract/bundle
        """,
    ),
    Client(
        "a builder of Bazzite images",
        "a script that makes a disk of ghcr.io/ublue-os/bazzite",
        """
        oci=$(mktemp -d) unpack=$(mktemp -d)
        skopeo copy oci:base:fedora:38 oci:$oci:bazzite
        umoci unpack --keep-dirlinks --image $oci:bazzite $unpack
        mkdir chroot
        mv $unpack/rootfs/* chroot/
        """,
    ),
    Client(
        "a kaniko without Docker",
        "a Makefile that runs kaniko in systemd-run",
        """
        mkdir -p .build/oci-bundle .build/rootfs
        skopeo copy oci:base:latest oci:.build/oci-bundle:latest
        umoci raw unpack --image .build/oci-bundle .build/rootfs
        """,
    ),
    Client(
        "a machine for systemd-nspawn",
        "a guide to systemd-nspawn with images of Docker's",
        """
        skopeo copy oci:base:latest oci:debian:bullseye-slim
        umoci ls --layout debian
        umoci stat --image debian:bullseye-slim >/dev/null
        umoci unpack --image debian:bullseye-slim bullseye-slim
        """,
    ),
    Client(
        "uniget and Homebrew",
        "uniget-org/cli; Homebrew/homebrew-core: Formula/u/umoci.rb",
        """
        [ "$(umoci --version | head -1 | cut -d' ' -f3 | cut -c-2)" = 0. ]
        umoci stat --image fake 2>/dev/null && exit 9 || echo $?
        umoci list --layout fake 2>/dev/null && exit 9 || echo $?
        """,
    ),
    Client(
        "a virtual machine of an image",
        "a Go service that makes qcow2 of images",
        """
        skopeo copy oci:base:latest oci:4f1c2d3e:latest
        tmp=$(mktemp -d)
        umoci unpack --image 4f1c2d3e:latest $tmp/
        cp -a $tmp/rootfs made
        """,
    ),
    Client(
        "Wind River's builder of Dockerfiles in bash",
        "a script that runs the instructions of a Dockerfile as functions",
        """
        mkdir -p org
        skopeo copy oci:base:latest oci:org/base:1.0
        umoci unpack --rootless --image org/base:1.0 unpacked/app:2.0
        mkdir -p unpacked/app:2.0/rootfs/opt; cp -R app unpacked/app:2.0/rootfs/opt
        umoci repack --image org/base:2.0 unpacked/app:2.0
        """,
    ),
]


@pytest.fixture
def run(tmp_path: Path, program: Callable[[str], str]) -> Run:
    for name in ("skopeo", "jq", "rsync"):
        program(name)
    return both(tmp_path, program("umoci"))


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_that_unpacks_sees_the_same(client: Client, run: Run) -> None:
    assert_same(*run(client.script), dated="umoci repack" not in client.script)
