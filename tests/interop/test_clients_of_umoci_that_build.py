"""Scripts, build systems and documents that make images with umoci: layerfarm makes the same of their commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.clients import Client, Run, assert_same, both

# Only the commands are as the clients have them: registries are the layout `base`, and what they pack is `rootfs` or
# `app`.
CLIENTS = [
    Client(
        "umoci's README",
        "opencontainers/umoci: README.md, doc/content/quick-start",
        """
        skopeo copy oci:base:latest oci:opensuse:leap
        umoci unpack --image opensuse:leap bundle
        echo foo > bundle/rootfs/README
        umoci repack --image opensuse:new-leap bundle
        umoci config --image opensuse:new-leap --author="Aleksa Sarai <cyphar@cyphar.com>" \\
                     --config.workingdir="/var/www"
        umoci gc --layout opensuse
        """,
    ),
    Client(
        "umoci's announcement",
        "www.cyphar.com/blog/post/umoci-new-oci-image-tool",
        """
        skopeo copy oci:base:latest oci:opensuse:42.2
        umoci unpack --image opensuse:42.2 bundle
        sed -i 's/Tumbleweed/Leap/g' bundle/rootfs/etc/os-release
        umoci repack --image opensuse:42.3 --history.author="Aleksa Sarai <asarai@suse.com>" bundle
        umoci config --image opensuse:42.3 --author="Aleksa Sarai <asarai@suse.com>" \\
            --created="$(date -d @1600000000 --iso-8601=seconds)" \\
            --config.entrypoint="strace" --config.entrypoint="-f" --config.cmd="bash"
        umoci gc --layout opensuse >/dev/null
        """,
    ),
    Client(
        "umoci's workflow for several layers",
        "opencontainers/umoci: doc/content/quick-start/workflow.md",
        """
        cp -a base build
        umoci tag --image build:latest wip
        umoci unpack --image build:wip bundle
        for step in 1 2 3; do
            echo $step > bundle/rootfs/etc/step
            touch -d @100$step bundle/rootfs/etc/step
            umoci repack --refresh-bundle --image build:wip bundle
        done
        umoci tag --image build:wip final
        umoci stat --image build:final --json | jq '.history | length'
        """,
    ),
    Client(
        "umoci-tag(1)",
        "opencontainers/umoci: doc/man/umoci-tag.1.md",
        """
        umoci tag --image base:fedora:38 new
        umoci tag --image base:latest fedora:38
        umoci tag --image base:new latest
        umoci rm --image base:new
        umoci ls --layout base | sort
        """,
    ),
    Client(
        "Yocto's meta-virtualization",
        "lmp-mirrors/meta-virtualization: classes/image-oci-umoci.inc",
        """
        image=core-image-oci tag=latest
        rm -rf $image $image-bundle
        umoci init --layout $image
        umoci new --image $image:$tag
        umoci unpack --rootless --image $image:$tag $image-bundle
        cp -r -a --no-preserve=ownership rootfs/* $image-bundle/rootfs
        umoci repack --image $image:$tag $image-bundle
        for label in a=b org.opencontainers.image.revision=0123abc \\
                org.opencontainers.image.created=2024-01-02T03:04:05Z; do
            umoci config --image $image:$tag --config.label "$label"
        done
        for each in PATH=/bin LANG=C.UTF-8; do
            umoci config --image $image:$tag --config.env "$each"
        done
        for port in 80/tcp 53; do
            umoci config --image $image:$tag --config.exposedports $port
        done
        umoci config --image $image:$tag --config.user 1000
        umoci config --image $image:$tag --config.workingdir /home
        umoci config --image $image:$tag --config.stopsignal SIGTERM
        umoci config --image $image:$tag --os linux
        umoci config --image $image:$tag --architecture arm64
        umoci config --image $image:$tag --config.entrypoint sh --config.entrypoint -c
        umoci config --image $image:$tag --config.cmd "-l" --config.cmd x
        umoci config --image $image:$tag --author "ann@example.com"
        (cd $image; tar -cf ../$image.tar .)
        tar -cf $image-dir.tar $image
        ln -sfn $image.tar core-image-$tag-oci.tar
        rm -rf $image-bundle
        ln -sfn $image core-image-$tag-oci
        """,
    ),
    Client(
        "Pantavisor's meta layer",
        "pantavisor/meta-pantavisor: classes/oci2docker.bbclass",
        """
        umoci init --layout pv
        umoci new --image pv:1.0
        umoci config --image pv:1.0 --config.env 'A=b c' --config.env B= --config.cmd /sbin/init --config.cmd '--x y'
        skopeo copy oci:pv:1.0 docker-archive:pv.tar:pv:1.0
        """,
    ),
    Client(
        "isar",
        "ilbers/isar: meta/classes/image-container-extension.bbclass",
        """
        rm -rf oci-image
        umoci init --layout oci-image
        umoci new --image oci-image:empty
        umoci config --image oci-image:empty --config.cmd=/bin/dash
        umoci unpack --image oci-image:empty oci-image_unpacked
        cp -a rootfs/* oci-image_unpacked/rootfs/
        find oci-image_unpacked/rootfs/tmp -mindepth 1 -delete
        umoci repack --image oci-image:latest oci-image_unpacked
        umoci remove --image oci-image:empty
        rm -rf oci-image_unpacked
        chown --recursive $(id -u):$(id -g) oci-image
        skopeo --insecure-policy copy oci:oci-image:latest docker-archive:isar.tar:isar-rootfs:latest
        skopeo --insecure-policy copy oci:oci-image:latest oci-archive:isar-oci.tar:latest
        """,
    ),
    Client(
        "rockcraft",
        "canonical/rockcraft: rockcraft/oci.py",
        """
        mkdir -p images bundles
        umoci init --layout images/bare
        umoci new --image images/bare:original
        umoci config --image images/bare:original --architecture amd64 --no-history
        umoci unpack --image images/bare:original bundles/bare-original
        add() {
            tar --sort=name --mtime=@1000 -C $1 -cf images/.temp_layer.1.tar $(cd $1; ls -A)
            cmd="umoci raw add-layer --image images/bare:$2 images/.temp_layer.1.tar --tag $3"
            $cmd --history.created_by "$cmd"
            rm images/.temp_layer.1.tar
        }
        add rootfs original rock
        add app rock rock
        umoci config --image images/bare:rock --clear=config.entrypoint --config.user _daemon_
        umoci config --image images/bare:rock --clear=config.entrypoint --config.entrypoint /bin/pebble \\
            --config.entrypoint enter --config.entrypoint --verbose
        umoci config --image images/bare:rock --clear=config.cmd
        umoci config --image images/bare:rock --config.env PATH=/usr/bin:/bin --config.env A=1
        umoci config --image images/bare:rock --clear=config.labels --config.label org.opencontainers.image.title=t \\
            --config.label 'x=y z'
        umoci config --image images/bare:rock --clear=manifest.annotations \\
            --manifest.annotation org.opencontainers.image.title=t --manifest.annotation 'x=y z'
        umoci stat --json --image images/bare:rock | jq -c '[.history[] | .empty_layer]'
        skopeo --insecure-policy copy oci:images/bare:rock oci-archive:rock.tar:rock
        """,
    ),
    Client(
        "rockcraft's first releases",
        "cjdcordeiro/rockcraft: rockcraft/oci.py",
        """
        skopeo --insecure-policy copy --preserve-digests oci:base:latest oci:ubuntu:rock
        echo x > metadata.yaml; touch -d @1000 metadata.yaml
        umoci insert --image ubuntu:rock metadata.yaml /.rock/metadata.yaml
        umoci insert --image ubuntu:rock app /opt/app
        umoci config --image ubuntu:rock --config.env A=1
        """,
    ),
    Client(
        "openQA's test of umoci",
        "os-autoinst/os-autoinst-distri-opensuse: tests/console/umoci.pm",
        """
        mkdir test_umoci; cd test_umoci
        skopeo copy oci:../base:latest oci:opensuse:tumbleweed
        umoci init --layout new_image
        umoci new --image new_image:new_tag
        umoci unpack --image opensuse:tumbleweed bundle
        ls bundle | grep -cE 'config.json|rootfs|sha256.*mtree|umoci.json'
        grep Tumbleweed bundle/rootfs/etc/os-release
        umoci unpack --rootless --image opensuse:tumbleweed bundle2
        umoci repack --image opensuse:new bundle
        umoci repack --image opensuse:new bundle2
        """,
    ),
    Client(
        "openEuler's test of umoci",
        "brsf11/mugen-riscv: testcases/cli-test/umoci/oe_test_umoci.sh",
        """
        umoci init --layout new_image
        ls new_image
        umoci new --image new_image:latest
        umoci list --layout new_image | grep "latest"
        umoci config --author="test <test@xxx.com>" --image new_image
        umoci rm --image new_image:latest
        """,
    ),
    Client(
        "stacker's tests",
        "project-stacker/stacker: test/caching.bats, test/built-type.bats",
        """
        skopeo --insecure-policy copy oci:base:latest oci:oci:parent
        umoci config --image oci:parent --config.workingdir /usr
        umoci --log info gc --layout oci
        umoci --log=debug unpack --image oci:parent dest/parent
        [ -f dest/parent/rootfs/usr/share/doc ]
        umoci tag --image oci:parent child
        [ "$(umoci ls --layout ./oci | sort)" == "$(printf 'child\\nparent')" ]
        umoci --log info unpack --image oci:child dest/child
        umoci rm --image oci:child
        umoci gc --layout oci
        manifest=$(jq -r .manifests[0].digest oci/index.json | cut -f2 -d:)
        jq '.layers | length' oci/blobs/sha256/$manifest
        """,
    ),
    Client(
        "atom, stacker's forerunner",
        "hallyn/stacker: stacker.go",
        """
        umoci init --layout=oci
        ! umoci init --layout=oci 2>/dev/null
        umoci ls --layout oci | grep "^empty$" || umoci new --image oci:empty
        umoci unpack --image oci:empty unpacked
        umoci repack --image oci:empty unpacked
        cp -a rootfs/. unpacked/rootfs
        umoci repack --image oci:v1 unpacked
        rm -rf unpacked
        umoci tag --image oci:v1 v2
        umoci config --image oci:v2 --config.entrypoint="/bin/sh" --config.cmd="-c" --config.env="A=b"
        umoci stat --image oci:v1 | tail -1 | grep -q "^sha256:"
        umoci rm --image oci:v1
        umoci gc --layout oci
        """,
    ),
    Client(
        "mos",
        "project-machine/mos: tests/make-soci-layer.bash",
        """
        tmpd=$(mktemp -d)
        umoci new --image base:meta
        umoci unpack --rootless --image  base:meta $tmpd
        cp app/run $tmpd/rootfs/manifest.yaml
        umoci repack --image base:meta $tmpd
        """,
    ),
    Client(
        "orca-build",
        "cyphar/orca-build: orca-build",
        """
        image=$(mktemp -d -p .) src=$(printf x | sha256sum | cut -c-64)-src
        step() { dest=$(printf $1 | sha256sum | cut -c-64)-dest; }
        rmdir $image
        umoci init --layout=$image
        umoci new --image=$image:$src
        step 1; umoci config --image=$image:$src --tag=$dest --author="A B" --config.label=maintainer="A B"; src=$dest
        bundle=$(mktemp -d)
        umoci unpack --image=$image:$src $bundle
        cp -a app $bundle/rootfs/
        step 2; umoci repack --image=$image:$dest $bundle; src=$dest
        step 3; umoci config --image=$image:$src --tag=$dest --config.cmd=/bin/sh --config.cmd=-c; src=$dest
        step 4; umoci config --image=$image:$src --tag=$dest --config.exposedports=80; src=$dest
        umoci raw runtime-config --image=$image:$src runtime.json
        jq -c .process.args runtime.json
        umoci tag --image $image:$src latest
        mv $image image
        """,
    ),
    Client(
        "Balrog",
        "mozilla-releng/balrog: scripts/push-dockerimage.sh",
        """
        skopeo copy oci:base:latest docker-archive:image.tar
        skopeo copy docker-archive:image.tar oci:balrog:final
        echo '{"version": 1}' > version.json
        umoci insert --image balrog:final version.json /app/version.json
        skopeo copy oci:balrog:final docker-archive:pushed.tar
        """,
    ),
    Client(
        "a builder of Cloud Foundry buildpacks",
        "a script that runs the buildpacks of cflinuxfs2",
        """
        skopeo copy oci:base:latest oci:cfstack:latest
        umoci insert --image cfstack:latest app /home/vcap/
        umoci insert --image cfstack:latest app/run /home/vcap/entry.sh
        umoci config --config.user "vcap:vcap" --image cfstack:latest
        umoci unpack --image cfstack:latest bundle
        """,
    ),
    Client(
        "BuildSourceImage",
        "containers/BuildSourceImage: BuildSourceImage.sh",
        """
        rm -rf out
        umoci init --layout out
        umoci new --image out:latest-source
        for artifact in app/run app/data/v; do
            sum=$(sha256sum $artifact | awk '{ print $1 }') tmpdir=$(mktemp -d)
            mkdir -p $tmpdir/blobs/sha256 $tmpdir/rpm_dir
            cp $artifact $tmpdir/blobs/sha256/$sum
            ln -s /blobs/sha256/$sum $tmpdir/rpm_dir/$(basename $artifact)
            umoci insert --rootless --image out:latest-source \\
                --history.created "$(date --utc -d @1600000000 +%Y-%m-%dT%H:%M:%S.%NZ)" \\
                --history.comment "#(nop) adding artifact: $(basename $artifact)" $tmpdir /
        done
        umoci unpack --rootless --image out:latest-source unpacked
        """,
    ),
    Client(
        "a container of a CI with NVIDIA's drivers",
        "a script of a GitHub workflow that adds packages to an image",
        """
        skopeo copy oci:base:latest oci:ubuntu-oci:2004
        for package in run data/v; do
            umoci insert --image ubuntu-oci:2004 app/$package /opt/data/$(basename $package)
        done
        umoci tag --image ubuntu-oci:2004 gpu:drivers
        umoci rm --image ubuntu-oci:2004
        skopeo copy oci:ubuntu-oci:gpu:drivers docker-archive:gpu-drivers.tar --additional-tag gpu:drivers
        """,
    ),
]


@pytest.fixture
def run(tmp_path: Path, program: Callable[[str], str]) -> Run:
    for name in ("skopeo", "jq"):
        program(name)
    return both(tmp_path, program("umoci"))


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_that_builds_makes_the_same(client: Client, run: Run) -> None:
    assert_same(*run(client.script), dated="--created" in client.script or "umoci repack" not in client.script)
