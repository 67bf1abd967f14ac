"""``layerfarm catalog prune`` at a real registry, which deletes by digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import Access
from layerfarm.worker.catalog.registry import Skopeo
from tests.catalog.registry import Gate, Registry
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import entry, index

Layerfarm = Callable[..., tuple[int, str, str]]
CLIENT = Skopeo(Access.model_validate({"tls-verify": False, "attempts": 1}))


def layers(name: str) -> list[bytes]:
    return [tar((name, name.encode() * 1000)), tar(("b", b"x"))]


@pytest.fixture
def catalog(registry: Registry, origin: Layout, tmp_path: Path) -> Path:
    """Images ``1.0``, ``1.1``, and ``same``, which is ``1.1``."""
    for tag in ("1.0", "1.1"):
        image(origin, layers(tag), tag=tag)
        registry.put(origin.path, tag, f"team/app:{tag}")
    registry.put(origin.path, "1.1", "team/app:same")
    path = tmp_path / "team.yaml"
    path.write_text(
        f"store: store\nsources: [{{registry: docker://{registry.host}/team, repositories: [app]}}]\n"
        "policies: [{match: '*', do: {transform: squash}}]\n"
        f"destination: {{registry: docker://{registry.host}/new}}\naccess: {{tls-verify: false, attempts: 1}}\n"
    )
    return path


def tags(registry: Registry) -> list[str]:
    return CLIENT.tags(f"docker://{registry.host}/new/team/app")


def select(path: Path, tags: str) -> None:
    path.write_text(path.read_text().replace("repositories: [app]", f"repositories: [app], tags: [{tags}]"))


def test_an_image_goes_with_its_proofs_and_tags_of_the_same_image_stay(
    registry: Registry, catalog: Path, layerfarm: Layerfarm
) -> None:
    assert layerfarm("catalog", "run", catalog)[0] == 0
    before = tags(registry)
    assert len(before) == 5  # three images, and the proofs of two manifests
    select(catalog, "same")
    code, out, _ = layerfarm("catalog", "prune", catalog)
    place = f"docker://{registry.host}/new/team/app"
    assert code == 0
    assert f"would remove {place}:1.0 (" in out
    assert f"kept {place}:1.1: the tag same needs its manifest" in out
    assert tags(registry) == before
    code, _, err = layerfarm("catalog", "prune", catalog, "--apply")
    assert code == 1 and "67 % of the images would be removed" in err
    code, out, _ = layerfarm("catalog", "prune", catalog, "--apply", "--at-most", "70")
    assert code == 0
    assert "failed 0" in out.splitlines()[-1]
    left = tags(registry)
    assert [tag for tag in left if not tag.startswith("sha256-")] == ["1.1", "same"]
    assert len(left) == 3  # their proofs
    assert layerfarm("catalog", "verify", catalog, "--deep")[0] == 0
    code, out, _ = layerfarm("catalog", "prune", catalog)
    assert code == 0 and "would remove 0 tags" in out


def test_tags_of_others_and_images_that_their_index_needs_stay(
    registry: Registry, catalog: Path, origin: Layout, layerfarm: Layerfarm
) -> None:
    assert layerfarm("catalog", "run", catalog)[0] == 0
    # Their index has the image that the catalog published as 1.0, and 1.1 is their own now.
    store = Layout.open(catalog.parent / "store")
    made = store.find("new/team/app:1.0")[0]
    other = image(origin, layers("theirs"), tag="theirs")
    registry.put(origin.path, "theirs", "new/team/app:1.1")
    registry.put(origin.path, "theirs", "new/team/app:mine")
    whole = index(origin, [entry(other), made.model_copy(update={"annotations": None})], "whole")
    registry.put_manifest("new/team/app:whole", origin.read(whole), whole.media_type)
    registry.delete("team/app:1.0")
    select(catalog, "none, same")
    before = tags(registry)
    code, out, _ = layerfarm("catalog", "prune", catalog, "--apply", "--at-most", "100")
    assert code == 0
    assert "app:1.0: the tag whole needs its manifest" in out
    assert f"app:1.1: others have put {other.descriptor.digest} there" in out
    assert tags(registry) == before


def test_a_registry_that_does_not_delete_is_a_failure_that_can_be_repeated(
    registry: Registry, catalog: Path, layerfarm: Layerfarm
) -> None:
    with Gate(registry) as gate:
        catalog.write_text(catalog.read_text().replace(f"{registry.host}/new", f"{gate.host}/new"))
        assert layerfarm("catalog", "run", catalog)[0] == 0
        select(catalog, "'1.1', same")
        before = tags(registry)
        for _ in range(2):
            code, out, _ = layerfarm("catalog", "prune", catalog, "--apply", "--at-most", "50")
            assert code == 1
            assert f"failed docker://{gate.host}/new/team/app:1.0: " in out
            assert tags(registry) == before
            code, out, _ = layerfarm("catalog", "prune", catalog)
            assert f"would remove docker://{gate.host}/new/team/app:1.0" in out
