"""The reference pages agree with the code: commands, settings, errors, exit codes, metrics, and what they quote."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from ruamel.yaml import YAML

from layerfarm.jobs import errors
from layerfarm.jobs.compress import Codec, Compression, codec_id
from layerfarm.jobs.flows.base import FORMAT
from layerfarm.jobs.limits import PREFIX as LIMIT_PREFIX
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.cli import diff_cmd, main, rebase_cmd
from layerfarm.worker.model import JobState
from layerfarm.worker.settings import _KEYS, _NOT_SETTINGS
from tests.docs.blocks import PAGES, ROOT
from tests.figures import FIGURES, figures
from tests.reference import DOCS, READERS, TABLES
from tests.schemas import SCHEMAS, schemas

PAGE_OF = {
    "kinds": "requests.md",
    "outputs": "requests.md",
    "states": "architecture.md",
    "commands": "commands.md",
    "settings": "settings.md",
    "errors": "exit-codes.md",
    "metrics": "metrics.md",
    "serve-metrics": "metrics.md",
}
SOURCES = {path: path.read_text() for place in ("jobs", "worker") for path in (ROOT / place).rglob("*.py")}


def page(name: str) -> str:
    return (DOCS / name).read_text()


@pytest.mark.parametrize("table", TABLES)
def test_generated_table_is_up_to_date(table: str) -> None:
    # In a process of its own: prometheus_client registers each metric once in a process.
    lines = f"from tests import reference; print(reference.table({table!r}))"
    path = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "deploy/import")))}
    done = subprocess.run([sys.executable, "-c", lines], env=os.environ | path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.search(rf"<!-- generated: {table} -->\n\n(.*?)\n\n<!-- end -->", page(PAGE_OF[table]), re.DOTALL)
    assert found is not None and found[1] == done.stdout.rstrip("\n"), "run `make man`"


def test_figures_are_up_to_date_and_shown() -> None:
    made = figures()
    assert {path.name: path.read_text() for path in FIGURES.iterdir()} == made, "run `make man`"
    shown = {name for path in DOCS.glob("*.md") for name in re.findall(r"\(figures/(.+?)\)", path.read_text())}
    assert shown == set(made)
    # A picture that a browser fetches a font for would ask another host.
    assert [name for name, text in made.items() if "@font-face" in text or "@import" in text] == []


def test_schemas_are_up_to_date() -> None:
    assert {path.name: path.read_text() for path in SCHEMAS.iterdir()} == dict(schemas()), "run `make man`"


def test_every_variable_that_the_code_reads_is_on_the_settings_page() -> None:
    read = {name for text in SOURCES.values() for name in re.findall(r'"(LAYERFARM_[A-Z_]+)"', text)}
    read |= {f"LAYERFARM_{key.upper()}" for key in _KEYS.values()}
    of_tests = {name for name in _NOT_SETTINGS if re.search("KILL|REQUIRE|TEST", name)}
    wanted = read - of_tests - {"LAYERFARM_", LIMIT_PREFIX}
    assert len(wanted) > 30
    assert sorted(name for name in wanted if f"`{name}`" not in page("settings.md")) == []


def test_every_variable_of_deploy_is_a_setting() -> None:
    # An operator who exports deploy/.env must not get an error from every command.
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    used = {name for path in files for name in re.findall(r"LAYERFARM_[A-Z_]*[A-Z]", path.read_text(errors="replace"))}
    assert len(used) > 8
    assert sorted(used - {f"LAYERFARM_{key.upper()}" for key in _KEYS.values()}) == []


def test_settings_are_read_by_those_that_the_page_names() -> None:
    client = (ROOT / "worker/client.py").read_text()
    others = "".join(text for path, text in SOURCES.items() if path.name not in ("client.py", "settings.py"))
    for field, key in _KEYS.items():
        in_client, elsewhere = (re.search(rf"settings\.{field}\b", text) for text in (client, others))
        reader = READERS.get(key, "workers")
        assert reader != "submitters" or (in_client and not elsewhere), key
        assert reader != "workers" or not in_client, key


def test_exit_codes_are_those_of_the_command() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page("exit-codes.md"), re.MULTILINE)}
    constants = {main.EXIT_USAGE, main.EXIT_INTERRUPTED, main.EXIT_BROKEN_PIPE, rebase_cmd.EXIT_UNSAFE}
    classes = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "exit_code")}
    assert codes == constants | classes | {diff_cmd.SAME, diff_cmd.DIFFERENT, diff_cmd.TROUBLE, 128 + 1, 128 + 15}


def test_commands_that_exit_with_1_without_an_error_are_listed() -> None:
    # `show_findings` ends with 1 where there is an error.
    raises = re.compile(r"Exit\((1|DIFFERENT)\)|\bshow_findings\(")
    raising = {path.stem for path, text in SOURCES.items() if path.stem.endswith("_cmd") and raises.search(text)}
    rows = [line for line in page("exit-codes.md").splitlines() if line.startswith("| `layerfarm")]
    names = [name for row in rows for name in re.findall(r"`layerfarm ([a-z -]+)`", row.split(" | ")[0])]
    listed = {re.sub("^catalog .*", "catalog", name).replace(" ", "_").replace("-", "_") for name in names}
    assert raising == {f"{name}_cmd" for name in listed}


def test_every_metric_of_rules_and_dashboard_is_on_the_page() -> None:
    monitoring = ROOT / "deploy/monitoring"
    used = "".join((monitoring / name).read_text() for name in ("rules.yml", "grafana-dashboard.json"))
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\blayerfarm_\w*[a-z]\b", used)}
    assert len(names) > 5
    assert sorted(name for name in names if f"`{name}`" not in page("metrics.md")) == []


def test_glossary_is_sorted_and_has_the_terms_of_the_code() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", page("glossary.md"), re.MULTILINE)[1:]
    terms = [term for term, _ in rows]
    assert terms == sorted(terms, key=str.lower) and len(set(terms)) == len(terms) >= 30
    wanted = "layer blob descriptor diff_id manifest index referrer whiteout bundle layout store job stage unit attempt"
    assert {*wanted.split(), "claim", "lease", "heartbeat", "shard", "plan", "proof"} <= set(terms)
    meanings = dict(rows)
    assert all(state in meanings["job"] for state in JobState)
    assert all(traffic in meanings["class"] for traffic in Traffic)


def test_messages_and_errors_that_troubleshooting_quotes_are_those_of_the_code() -> None:
    text = page("troubleshooting.md")
    code = " ".join(SOURCES.values())
    system = {os.strerror(number) for number in range(1, 134)} | {"http: server gave HTTP response to HTTPS client"}
    system |= {"x509: certificate signed by unknown authority", "Unrecoverable error: auth:NoPermissionError"}
    quoted = []
    for heading in ("message", "error, or part of it"):
        for table in text.split(f"| {heading} |")[1:]:
            rows = table.partition("\n\n")[0].splitlines()[2:]
            quoted += [quote for row in rows for quote in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(quoted) > 20
    assert [quote for quote in quoted if quote not in system and quote not in code] == []


def test_every_page_is_in_the_table_of_contents_by_its_kind() -> None:
    nav = YAML(typ="safe").load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert [kind for section in nav for kind in section] == [
        "Tutorials",
        "How-to guides",
        "Reference",
        "Explanation",
        "Contributing",
    ]


def test_codec_that_the_page_of_formats_shows_is_that_of_zstd() -> None:
    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    shown = codec_id(Codec(Compression.ZSTD)).replace(f"libzstd={version};", "libzstd=")
    assert shown.count("libzstd=") == 1
    assert re.sub(r"(libzstd=)[\d.]+;", r"\1", page("formats.md")).count(f"`{shown}`") == 1


def test_job_format_is_that_of_the_code() -> None:
    assert re.findall(r"format (\d+)", page("compatibility.md")) == [str(FORMAT)]


@pytest.mark.parametrize("path", [*PAGES, ROOT / "tests/README.md"], ids=lambda path: path.stem)
def test_make_has_every_target_that_a_page_names(path: Path) -> None:
    targets = set(" ".join(re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)).split())
    code = re.findall(r"```.*?```|`[^`]+`|^    .*$", path.read_text(), re.DOTALL | re.MULTILINE)
    named = {target for text in code for target in re.findall(r"(?:^ *|`|\$ |&& )make ([a-z-]+)", text, re.M)}
    assert named - targets == set()


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
