"""deploy/kubernetes: every object by the schema of its kind, and what the overlays make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from layerfarm.worker.broker.priorities import Queues
from layerfarm.worker.catalog.document import parse_catalog
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.settings import Settings
from tests.docs.commands import refusal

KEYS = Keys()

VERSION = "1.30"
OVERLAYS = ("small", "keda")
Object = dict[str, Any]


def load(path: Path) -> list[Object]:
    return [document for document in YAML(typ="safe").load_all(path) if document]


def build(directory: Path) -> dict[tuple[str, str], Object]:
    """Output of ``kubectl kustomize`` for a directory, for the fields that are used here."""
    (kustomization,) = load(directory / "kustomization.yaml")
    known = {"apiVersion", "kind", "namespace", "resources", "patches"}
    assert set(kustomization) <= known
    objects: dict[tuple[str, str], Object] = {}
    for name in kustomization["resources"]:
        path = (directory / name).resolve()
        found = build(path).values() if path.is_dir() else load(path)
        for each in found:
            key = (each["kind"], each["metadata"]["name"])
            assert key not in objects
            objects[key] = each
    for patch in kustomization.get("patches", []):
        target = (patch["target"]["kind"], patch["target"]["name"])
        changes = YAML(typ="safe").load(patch["patch"])
        objects[target] = jsonpatch.apply_patch(objects[target], changes)
    namespace = kustomization.get("namespace")
    for (kind, _), each in objects.items():
        if namespace and kind != "Namespace":
            each["metadata"].setdefault("namespace", namespace)
    return objects


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest, deploy: Path) -> dict[tuple[str, str], Object]:
    return build(deploy / "kubernetes/overlays" / request.param)


def test_every_object_is_of_its_schema(objects: dict[tuple[str, str], Object]) -> None:
    checked = 0
    for (kind, _), each in objects.items():
        if not each["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(each, VERSION, strict=True)
            checked += 1
        assert each["metadata"].get("namespace") == "layerfarm" or kind == "Namespace"
    assert checked == 10


def test_the_worker_drains_and_its_probes_ask_whether_it_takes_messages(
    objects: dict[tuple[str, str], Object],
) -> None:
    pod = objects["Deployment", "worker"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > float(variables["LAYERFARM_DRAIN"]) + 10
    keys = {f"LAYERFARM_{'class' if name == 'traffic' else name}".upper() for name in Settings.model_fields}
    assert set(variables) <= keys
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == ["layerfarm", "ping", "--this-host"]
    # A Redis that is away for some minutes is no reason to restart every worker.
    assert container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"] >= 300


def test_nothing_runs_with_more_than_it_needs(objects: dict[tuple[str, str], Object]) -> None:
    for key in (("Deployment", "worker"), ("StatefulSet", "redis")):
        pod = objects[key]["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            assert "memory" in container["resources"]["limits"]


def test_everything_that_is_mounted_or_selected_is_there(objects: dict[tuple[str, str], Object]) -> None:
    claims = {name for kind, name in objects if kind == "PersistentVolumeClaim"}
    labels = {"worker", "redis"}
    for (kind, _), each in objects.items():
        if kind in ("Deployment", "StatefulSet"):
            pod = each["spec"]["template"]["spec"]
            volumes = {volume["name"] for volume in pod["volumes"]}
            volumes |= {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])}
            assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes
            assert {
                v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
            } <= (claims)
        if kind == "NetworkPolicy":
            assert each["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] in labels


def test_redis_has_the_configuration_of_deploy_redis(objects: dict[tuple[str, str], Object], deploy: Path) -> None:
    data = objects["ConfigMap", "redis"]["data"]
    assert data["users.acl"].split() == (deploy / "redis/users.acl").read_text().split()
    wanted = _directives((deploy / "redis/redis.conf").read_text())
    given = _directives(data["redis.conf"])
    for name in ("bind", "dir", "aclfile"):
        wanted.pop(name, None)
        given.pop(name, None)
    assert given == wanted


def _directives(text: str) -> dict[str, str]:
    lines = (line.partition(" ") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {name: value for name, _, value in lines}


def test_the_server_of_a_catalog(deploy: Path) -> None:
    objects = build(deploy / "kubernetes/overlays/catalog")
    for each in objects.values():
        kubernetes_validate.validate(each, VERSION, strict=True)
    deployment = objects["Deployment", "catalog"]["spec"]
    # A second server of the catalog would end with an error.
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    pod = deployment["template"]
    (container,) = pod["spec"]["containers"]
    assert refusal(container["args"]) == ""
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["oci"]["persistentVolumeClaim"]["claimName"] in {
        name for kind, name in objects if kind == "PersistentVolumeClaim"
    }
    (name, text), *_ = objects["ConfigMap", volumes["catalogs"]["configMap"]["name"]]["data"].items()
    assert f"/etc/layerfarm/catalogs/{name}" in container["args"]
    assert parse_catalog(text.encode(), Path("/etc/layerfarm/catalogs") / name).store.startswith("/srv/oci/")
    # The policy of Redis lets pods with this label in.
    assert pod["metadata"]["labels"]["layerfarm.io/submitter"] == "true"
    selector = {"app.kubernetes.io/name": "catalog"}
    assert objects["Service", "catalog"]["spec"]["selector"] == selector
    assert objects["NetworkPolicy", "catalog"]["spec"]["podSelector"]["matchLabels"] == selector


def test_scaling_looks_at_the_queues_that_there_are(deploy: Path) -> None:
    objects = build(deploy / "kubernetes/overlays/keda")
    spec = objects["ScaledObject", "worker"]["spec"]
    assert "replicas" not in objects["Deployment", "worker"]["spec"]
    lists = {trigger["metadata"]["listName"] for trigger in spec["triggers"]}
    queues = Queues.of(Settings.model_fields["queue"].default)
    assert lists == {KEYS.broker + name for name in queues if name != queues.control}
    assert spec["scaleTargetRef"]["name"] == "worker"
    for trigger in spec["triggers"]:
        assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in objects
