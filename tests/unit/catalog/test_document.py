"""The catalog file: its fields, and the errors for mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.errors import CatalogFileError, LimitExceeded
from layerfarm.worker.catalog.document import CatalogFile, parse_catalog, read_catalog
from layerfarm.worker.catalog.policies import Rebase, Rechunk, Recompress

GOOD = """\
store: work
sources:
  - registry: docker://registry.example:5000/team
    repositories: [web, api]
    tags: ["1.*"]
    exclude: ["*-rc*"]
  - layout: /srv/oci
policies:
  - match: "team/web:*"
    do: {transform: recompress, compress: zstd, level: 19}
  - match: ["*"]
    do:
      transform: rechunk
      budget: 40
      components:
        - {name: models, paths: ["opt/models/*"]}
destination:
  registry: docker://registry.example:5000/relayered
access: {parallel: 2, per-minute: 30}
"""
PATH = Path("/etc/catalogs/web.yaml")


def parse(text: str) -> CatalogFile:
    return parse_catalog(text.encode(), PATH)


def test_a_catalog_file_says_sources_policies_destination_and_access() -> None:
    catalog = parse(GOOD)
    assert catalog.store == "/etc/catalogs/work"
    assert catalog.sources[0].repositories == ("web", "api")
    assert catalog.policies[0].match == ("team/web:*",)
    assert catalog.policies[0].do == Recompress(transform="recompress", compress="zstd", level=19)
    assert isinstance(catalog.policies[1].do, Rechunk)
    assert catalog.policies[1].do.budget == 40
    assert catalog.access.per_minute == 30
    assert catalog.destination.registry == "docker://registry.example:5000/relayered"


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(
        "store: ./s\nsources: [{layout: in}]\npolicies: [{match: '*', do: {transform: keep}}]\n"
        "destination: {layout: out}\naccess: {auth-file: auth.json}\n"
    )
    catalog = read_catalog(path)
    assert catalog.sources[0].layout == str(tmp_path / "in")
    assert catalog.destination.layout == str(tmp_path / "out")
    assert catalog.access.auth_file == str(tmp_path / "auth.json")
    assert catalog.store == str(tmp_path / "s")


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("store: [\n", ":2:1", "not YAML"),
        ("store: a\nstore: b\n", ":2:1", "duplicate key"),
        ("store: 'a\n", ":2:1", "not YAML"),
        ("\tstore: a\n", ":1:1", "cannot start any token"),
        ("- a\n", "web.yaml", "mapping"),
        ("", "web.yaml", "mapping"),
        (GOOD.replace("budget: 40", "budget: 127"), ":14:7", "above 120"),
        (GOOD.replace("level: 19", "level: fast"), ":10:49", "not a whole number"),
        (GOOD.replace("transform: recompress", "transform: shrink"), ":10:5", "recompress"),
        (
            GOOD.replace("  - layout: /srv/oci\n", "  - layout: /srv/oci\n    registry: docker://a/b\n"),
            ":7:5",
            "either",
        ),
        (GOOD.replace("docker://registry.example:5000/team", "registry.example/team"), ":3:5", "docker://HOST"),
        (GOOD.replace("layout: /srv/oci", "layout: docker://a/b"), ":7:5", "sources.1.layout: 'docker://a/b' is"),
        (
            GOOD.replace("  registry: docker://registry.example:5000/r", "  layout: docker://r"),
            ":18:3",
            "are directories",
        ),
        (GOOD.replace("store: work", "store: docker://r"), ":1:1", "store: 'docker://r' is the address of a registry"),
        (GOOD.replace("    repositories: [web, api]\n", ""), ":3:5", "repositories of the registry are missing"),
        (GOOD.replace("parallel: 2", "paralell: 2"), ":19:10", "paralell"),
        (GOOD.replace('tags: ["1.*"]', "tags: [1.10]"), ":5:12", "not a string"),
        (GOOD.replace("store: work\n", ""), ":1:1", "store"),
        (
            GOOD.replace(
                "{transform: recompress, compress: zstd, level: 19}", "{transform: rebase, old-base: a, new-base: b:1}"
            ),
            ":10:29",
            "LAYOUT:TAG",
        ),
    ],
)
def test_mistakes_are_reported_with_line_and_column(text: str, place: str, words: str) -> None:
    with pytest.raises(CatalogFileError) as caught:
        parse(text)
    assert place in str(caught.value).split(" ")[0], str(caught.value)
    assert words in str(caught.value)


def test_bases_are_relative_to_the_file_too() -> None:
    policy = "{transform: rebase, old-base: bases:1, new-base: /srv/bases:2, accept: review}"
    (first, _) = parse(GOOD.replace("{transform: recompress, compress: zstd, level: 19}", policy)).policies
    assert isinstance(first.do, Rebase)
    assert (first.do.old_base, first.do.new_base) == ("/etc/catalogs/bases:1", "/srv/bases:2")


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(CatalogFileError) as caught:
        parse(GOOD.replace("budget: 40", "budget: 0").replace("parallel: 2", "parallel: none"))
    assert "web.yaml:14:7" in str(caught.value)
    assert "web.yaml:19:10" in str(caught.value)


def test_a_file_that_is_no_text_is_an_error() -> None:
    with pytest.raises(CatalogFileError):
        parse_catalog(b"\x00\xff\xfe", PATH)


def test_a_missing_file_and_one_too_large_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CatalogFileError, match="No such file"):
        read_catalog(tmp_path / "none.yaml")
    monkeypatch.setenv("LAYERFARM_LIMIT_DOCUMENT_BYTES", "100")
    (tmp_path / "large.yaml").write_text(GOOD)
    with pytest.raises(LimitExceeded):
        read_catalog(tmp_path / "large.yaml")
