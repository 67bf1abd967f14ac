"""Derivations of Nix, Dockerfiles and pipelines that call umoci: layerfarm makes the same of their commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.clients import Client, Run, assert_same, both

# Only the commands are as the clients have them: registries are the layout `base`, and what they pack is `rootfs` or
# `app`.
CLIENTS = [
    Client(
        "an image of a development shell",
        "a flake.nix that packs the closure of its packages",
        """
        umoci init --layout image
        umoci new --image image:dev
        umoci insert --image image:dev rootfs /
        umoci config --config.cmd /bin/bash --created "1970-01-01T00:00:01Z" --image image:dev \\
            --config.env "PATH=/a:/b" --config.env "SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt" --image image:dev
        tar -C image -czf out.tar.gz .
        """,
    ),
    Client(
        "manifests for Flux",
        "a flake.nix that packs what Flux applies",
        """
        unpacked=$(mktemp -d)
        umoci init --layout out
        umoci new --image out:latest
        umoci unpack --uid-map 0:$(id -u) --gid-map 0:$(id -g) --image out:latest "$unpacked"
        cp -a app/. "$unpacked/rootfs"
        umoci repack --image out:latest "$unpacked"
        umoci gc --layout out
        """,
        root=True,
    ),
    Client(
        "manifests for Flux without a history",
        "a default.nix that packs what Flux applies",
        """
        unpacked=$(mktemp -d)
        umoci init --layout out
        umoci new --image out
        umoci unpack --rootless --image out "$unpacked"
        cp -a app/. "$unpacked/rootfs"
        find "$unpacked" -exec touch -d '1970-01-01T00:00:01Z' {} +
        umoci repack --no-history --image out "$unpacked"
        umoci gc --layout out
        """,
    ),
    Client(
        "anysnake2",
        "TyberiusPrime/anysnake2: src/nix/functions.nix",
        """
        umoci init --layout shell
        umoci new --image shell:latest
        mkdir tmp-oci-unpack
        umoci unpack --image shell:latest tmp-oci-unpack --rootless
        rsync -arW rootfs/ tmp-oci-unpack/rootfs/
        chmod +w tmp-oci-unpack/rootfs -R
        umoci repack --image shell:latest tmp-oci-unpack
        umoci config --image shell:latest
        (cd shell && tar cf ../out.tar .)
        """,
    ),
    Client(
        "Contrast",
        "edgelesssys/contrast: packages/scripts.nix",
        """
        tmpdir=$(mktemp -d)/oci
        umoci init --layout "$tmpdir"
        skopeo copy oci:base:latest "oci:$tmpdir:alpine" --insecure-policy
        umoci unpack --image "$tmpdir:alpine" "$tmpdir/rootfs" --rootless
        echo 1700000000 > "$tmpdir/rootfs/rootfs/timestamp"
        umoci repack --image "$tmpdir:alpine" "$tmpdir/rootfs"
        jq -r '.manifests | length' "$tmpdir/index.json"
        mv $tmpdir oci
        """,
    ),
    Client(
        "an enclave of an image",
        "a flake.nix that makes an EIF for AWS Nitro",
        """
        skopeo --insecure-policy --tmpdir "$TMPDIR" copy oci:base:latest oci:image:checked >/dev/null
        umoci raw unpack \\
            --rootless \\
            --image image:checked \\
            out
        """,
    ),
    Client(
        "an image that is made slim",
        "a script that keeps listed files of an image of Docker's",
        """
        skopeo copy oci:base:latest oci:app-oci:1
        umoci unpack --rootless --image app-oci:1 app-1-bundle
        mkdir -p app-1-bundle/rootfs-slim/usr
        cp -r app-1-bundle/rootfs/usr/share app-1-bundle/rootfs-slim/usr/share
        find app-1-bundle/rootfs-slim -exec touch -d @1000 {} +
        umoci init --layout slim
        umoci new --image slim:latest
        umoci insert --rootless --image slim:latest app-1-bundle/rootfs-slim /
        umoci unpack --rootless --image slim:latest slim-bundle
        umoci raw config --rootless --rootfs rootfs --image app-oci:1 slim-bundle/config.json
        umoci repack --image slim:1 slim-bundle
        umoci gc --layout slim
        """,
    ),
    Client(
        "a builder of layers of packages",
        "a package builder in JavaScript that takes the last layer of a repack",
        """
        umoci init --layout=oci
        umoci new --image=oci
        umoci insert --rootless --image oci rootfs /
        umoci unpack --rootless --image oci bundle
        echo more > rootfs/etc/more; touch -d @2000 rootfs/etc/more rootfs/etc
        rsync -crlpgoDX rootfs/ bundle/rootfs
        umoci repack --refresh-bundle --image oci bundle
        umoci gc --layout=oci
        manifest=$(jq -r .manifests[0].digest oci/index.json | tr : /)
        jq '.layers | length' oci/blobs/$manifest
        """,
    ),
    Client(
        "a sandbox in an image",
        "a Dockerfile with a stage for the archive of another stage",
        """
        umoci init --layout oci && umoci new --image oci:sandbox && umoci unpack --image oci:sandbox bundle
        cp -a rootfs/. bundle/rootfs/
        umoci repack --image oci:sandbox bundle && tar -C oci -cf sandbox.tar .
        """,
    ),
    Client(
        "PocketForge",
        "pocketforge-os: the pipeline of an app",
        """
        umoci init --layout oci
        umoci new --image oci:1.2.3
        umoci unpack --rootless --image oci:1.2.3 bundle
        tar -C rootfs -cf base.tar . && tar -C bundle/rootfs -xf base.tar
        cp -a app/. bundle/rootfs/
        umoci repack --image oci:1.2.3 bundle
        umoci config --image oci:1.2.3 --architecture arm64 --os linux --config.user 1000:1000 \\
            --config.workingdir /opt/app --config.entrypoint /opt/app/launch \\
            --config.env "SDL_DYNAMIC_API=/usr/lib/libSDL3.so.0" --config.label "org.pocketforge.app.id=x"
        umoci gc --layout oci
        jq -r '.manifests | length' oci/index.json
        """,
    ),
    Client(
        "a Dockerfile run by udocker",
        "a Python program that runs a Dockerfile with udocker",
        """
        skopeo copy oci:base:latest oci:debin:latest
        umoci unpack --rootless --image debin:latest debinard
        touch debinard/rootfs/ran
        umoci repack --image debin:latest debinard
        umoci config --image debin:latest --config.exposedports 8080
        umoci config --image debin:latest --config.cmd=/bin/sh --config.cmd=-c --config.cmd=id
        umoci config --image debin:latest --config.volume /data
        """,
    ),
    Client(
        "a server of audio",
        "notes on an image of a Rust server on distroless",
        """
        mv base chorus
        umoci insert --rootless --image chorus:latest --tag chorus-server app /usr/local/bin
        umoci config --image chorus:chorus-server --config.entrypoint /usr/local/bin/run \\
            --config.cmd --listen --config.cmd 0.0.0.0:4010 --config.exposedports 4010/tcp --config.user 65532:65532
        umoci rm --image chorus:latest && umoci rm --image chorus:fedora:38 && umoci gc --layout chorus
        tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C chorus -cf server.tar \\
            oci-layout index.json blobs
        """,
    ),
    Client(
        "a builder that stops at an error",
        "what every script of set -e relies on",
        """
        umoci init --layout s
        for command in "init --layout s" "new --image none:t" "unpack --image s:none b" "tag --image s:none x" \\
                "insert --image s:none app /" "config --image s:none" "gc --layout none" \\
                "raw unpack --image s:none r"; do
            umoci $command 2>/dev/null && exit 9 || echo "$command: $?"
        done
        umoci rm --image s:none
        """,
    ),
]


@pytest.fixture
def run(tmp_path: Path, program: Callable[[str], str]) -> Run:
    for name in ("skopeo", "jq", "rsync"):
        program(name)
    return both(tmp_path, program("umoci"))


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_a_client_in_nix_or_ci_sees_the_same(client: Client, run: Run, request: pytest.FixtureRequest) -> None:
    if client.root:
        request.getfixturevalue("as_root")
    assert_same(*run(client.script), dated="--created" in client.script or "umoci repack" not in client.script)
