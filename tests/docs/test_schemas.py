"""The schemas of docs/schemas describe what every command prints with ``--json``, and what ``submit`` takes."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource

from layerfarm.jobs.store import MEDIA_TYPE_MANIFEST, Layout
from layerfarm.worker.cli.main import cli, main
from layerfarm.worker.embedded import EmbeddedFarm
from tests.schemas import OF_JOBS, OUTPUTS, schemas
from tests.started import for_later_tests
from tests.unit.image.images import image, tar

KNOWN = {name: json.loads(text) for name, text in schemas()}
SCHEMA_OF = {command: f"{kind}.result" for command, kind in OF_JOBS.items()}
SCHEMA_OF |= {command: name for name, output in OUTPUTS.items() for command in output.commands}
SCHEMA_OF |= {"jobs watch": "build.result"}

PREPARE = """
unpack --image store:app bundle
recompress --image store:app --target store:plain --compress none
"""
SHOWN = """
build --rootfs tree --image store:built
unpack --image store:app other
repack --image store:repacked bundle
mtree tree --output tree.mtree
recompress --image store:app --target store:zstd --compress zstd
rechunk --image store:app --target store:rechunked
squash --image store:app --target store:squashed
strip --image store:app --target store:stripped own
rebase --image store:app --old-base store:base --new-base store:base --target store:rebased
rebase --image store:app --old-base store:base --new-base store:base --check
flatten --image store:app flat
stat --image store:app
stat --image store:artifact
diff tree store:app
diff tree tree
validate --image store:app
validate --layout store
validate --bundle bundle
verify --image store:plain
verify --image store:app
config show
doctor --store store
catalog plan catalog.yaml
catalog run catalog.yaml
catalog report catalog.yaml
"""
OF_A_FARM = """
top
jobs ls
jobs show JOB
jobs watch JOB
submit --request build.json
submit --request build.json --wait
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with a tree, a layout ``store`` of several images, a catalog and a request."""
    path = tmp_path_factory.mktemp("schemas")
    (path / "tree/etc").mkdir(parents=True)
    (path / "tree/own").write_text("changed")
    Path(os.fsdecode(os.fsencode(path / "tree") + b"/\xff")).write_text("no UTF-8")
    store = Layout.create(path / "store")
    base, own = tar(("base", b"b" * 4000)), tar(("own", b"own"))
    image(store, [base], tag="base")
    image(store, [base, own], tag="app", history=[{"created_by": "a"}, {"created_by": "b"}])
    (path / "catalog.yaml").write_text(
        "store: made\nsources: [{layout: store}]\npolicies: [{match: '*', do: {transform: squash}}]\n"
    )
    artifact = {"schemaVersion": 2, "artifactType": "a/b", "config": plain(store, b"no JSON"), "layers": []}
    store.tag("artifact", store.put(json.dumps(artifact).encode(), MEDIA_TYPE_MANIFEST))
    request = {"rootfs": str(path / "tree"), "image": {"store": str(store.path), "tag": "submitted"}}
    (path / "build.json").write_text(json.dumps({"kind": "build", "request": request}))
    for line in PREPARE.strip().splitlines():
        assert printed(path, *line.split())[0] == 0, line
    return path


@pytest.fixture(scope="module")
def farm(directory: Path) -> Iterator[str]:
    with for_later_tests(), EmbeddedFarm(roots=[directory], stores=[directory / "store"]) as farm:
        yield farm.url


def plain(store: Layout, content: bytes) -> dict[str, Any]:
    """The descriptor of a new blob."""
    return store.put(content, "application/x-config").model_dump(mode="json", by_alias=True, exclude_none=True)


def printed(directory: Path, *args: str) -> tuple[int, str]:
    """Exit code and stdout of ``layerfarm`` in ``directory``."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with chdir(directory), redirect_stdout(stdout):
        code = main(list(args))
        stdout.flush()
    return code, stdout.buffer.getvalue().decode()  # type: ignore[attr-defined]


def validator(name: str) -> Draft202012Validator:
    """A schema without room for fields that it does not name: what this release prints is documented whole."""
    registry: Registry[Any] = Registry().with_resources(
        (each, Resource.from_contents(schema)) for each, schema in KNOWN.items()
    )
    return Draft202012Validator(closed(KNOWN[f"{name}.json"]), registry=registry)


def closed(value: Any) -> Any:
    if isinstance(value, list):
        return [closed(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: closed(each) for name, each in value.items()}
    return {"additionalProperties": False, **found} if isinstance(value.get("properties"), dict) else found


def documents(command: str, text: str) -> list[Any]:
    """The JSON documents that a command has printed."""
    lines = command == "submit" or command == "jobs ls"
    return [json.loads(part) for part in (text.splitlines() if lines else [text])]


def check(directory: Path, line: str) -> None:
    args = line.split()
    command = " ".join(args[:2]) if args[0] in ("jobs", "catalog", "config") else args[0]
    schema = "rebase-check.result" if "--check" in args else SCHEMA_OF[command]
    code, text = printed(directory, *args, "--json")
    assert code == 0 or command in ("diff", "doctor"), line
    found = documents(command, text)
    assert found, line
    for document in found:
        validator(schema).validate(document)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("line", SHOWN.strip().splitlines())
def test_output_is_as_its_schema_says(directory: Path, line: str) -> None:
    check(directory, line)


@pytest.mark.usefixtures("as_root")
def test_output_of_a_farm_is_as_its_schema_says(directory: Path, farm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_FARM", farm)
    code, line = printed(directory, "build", "--rootfs=tree", "--image=store:farmed", "--detach")
    assert code == 0
    for text in OF_A_FARM.strip().splitlines():
        check(directory, text.replace("JOB", line.strip()))
    code, text = printed(directory, "submit", "--request=build.json", "--wait", "--json")
    last = json.loads(text.splitlines()[-1])
    validator("build.result").validate(last["result"])
    record = json.loads(printed(directory, "jobs", "show", last["job"], "--json")[1])
    validator("build.request").validate(record["request"])
    assert (code, last["state"]) == (0, "succeeded")


def test_every_command_with_json_has_a_schema_and_is_run_here() -> None:
    with_json = set(commands_with_json(cli, click.Context(cli, info_name="layerfarm")))
    # `config show` is no command of a group: `config` takes it as its argument.
    assert with_json | {"config show"} == set(SCHEMA_OF)
    run = [line.split(" --")[0] for line in (SHOWN + OF_A_FARM).strip().splitlines()]
    assert [name for name in sorted(SCHEMA_OF) if not any(f"{line} ".startswith(f"{name} ") for line in run)] == []


def commands_with_json(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        below = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from commands_with_json(command, below)
        elif any("--json" in parameter.opts for parameter in command.get_params(below)):
            yield below.command_path.removeprefix("layerfarm ")


@pytest.mark.parametrize(
    ("change", "fits"),
    [({}, True), ({"kind": "unpack"}, False), ({"request": {"rootfs": "/r"}}, False), ({"priority": 1}, False)],
)
def test_schema_of_submissions_tells_right_from_wrong(change: dict[str, Any], fits: bool) -> None:
    request = {"rootfs": "/r", "image": {"store": "/s"}}
    assert validator("submission").is_valid({"kind": "build", "request": request} | change) is fits


def test_schemas_of_outputs_take_fields_of_later_releases_and_those_of_requests_do_not() -> None:
    for name, schema in KNOWN.items():
        assert ('"additionalProperties": false' in json.dumps(schema)) is (
            name == "submission.json" or name.endswith(".request.json")
        ), name


def test_missing_field_is_found() -> None:
    with pytest.raises(ValidationError, match="'level' is a required property"):
        validator("doctor.output").validate([{"topic": "redis", "what": "answers"}])
    with pytest.raises(ValidationError, match="'colour' was unexpected"):
        validator("doctor.output").validate([{"level": "ok", "topic": "redis", "what": "answers", "colour": "red"}])
