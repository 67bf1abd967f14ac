"""Commands of the README and of the documentation are run, and their output is compared."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import pytest
from ruamel.yaml import YAML

from layerfarm.worker.cli.main import cli
from tests.docs.blocks import COMMANDS, PAGES, ROOT, TEXTS, Block, blocks, steps
from tests.docs.commands import commands, leaves, refusal
from tests.docs.stages import Stages, as_shown

BLOCKS = [block for page in PAGES for block in blocks(page)]
STAGES = ("", "farm", "go", "redis", "images", "alternatives", "catalog", "gitlab", "github")
SCRIPTS = list(dict.fromkeys((block.page, block.stage) for block in BLOCKS if block.mark == "run"))
_TEST = re.compile(r"(tests/[\w/]+\.py)(?:::(test_\w+))?")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> Iterator[Stages]:
    with ExitStack() as stack:
        yield Stages(tmp_path_factory.mktemp("docs"), stack, program)


@pytest.mark.parametrize(("page", "stage"), SCRIPTS, ids=lambda part: getattr(part, "stem", part) or "plain")
def test_commands_of_a_page_print_the_output_shown(page: Path, stage: str, stages: Stages) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: the pages unpack as root")
    of_page = [block for block in BLOCKS if block.page == page and block.mark in ("run", "file")]
    stages.run(page.stem, stage, [block for block in of_page if block.stage == stage])


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_names_its_test(block: Block) -> None:
    assert block.language in COMMANDS | TEXTS | {""}, "a language of one word: see blocks.py for the rest"
    assert block.mark or block.language in TEXTS, "commands: run, or skip with a reason, in a comment before"
    assert block.mark != "skip" or len(block.about.split()) > 2, "skipped for what reason?"
    assert block.mark not in ("run", "file") or block.stage in STAGES
    for path, test in _TEST.findall(block.about):
        text = (ROOT / path).read_text()
        assert not test or f"def {test}(" in text, f"{path} has no {test}"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_command_line_takes_every_command_that_is_shown(block: Block) -> None:
    texts = [block.text]
    if block.language == "yaml":
        texts = list(leaves(YAML(typ="safe").load(block.text)))
    elif block.language == "console":
        texts = [step.command for step in steps(block)]
    for text in texts:
        for arguments in commands(text):
            assert refusal(arguments) == "", arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_line_knows_every_command_that_is_mentioned(page: Path) -> None:
    for mention in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text()):
        for arguments in commands(mention):
            assert refusal(arguments, whole=False) == "", arguments


def test_the_command_line_takes_every_example_of_its_help() -> None:
    seen = 0
    for text in _helps(cli, click.Context(cli, info_name="layerfarm")):
        for arguments in commands(text.partition("Example")[2].replace("$ ", "")):
            seen += 1
            assert refusal(arguments) == "", arguments
    assert seen > 60


def test_the_command_line_takes_every_command_of_deploy() -> None:
    seen = 0
    for path in sorted((ROOT / "deploy").rglob("*")):
        # A build leaves the README, whose prose begins with the command's name, in layerfarm.egg-info.
        if path.is_file() and path.suffix != ".json" and path.parent.suffix != ".egg-info":
            text = re.sub(r"^(# +|Exec\w+=|CMD |ENTRYPOINT )", "", path.read_text(), flags=re.MULTILINE)
            for arguments in commands(text):
                seen += 1
                assert refusal(arguments) == "", (path, arguments)
    assert seen >= 2


def test_a_wrong_flag_a_wrong_command_and_a_wrong_value_are_seen() -> None:
    shown = "X=1 layerfarm gc --layout s --dryrun && layerfarm jobs lst | layerfarm gc --layout s --grace=soon 2>log"
    assert [bool(refusal(arguments)) for arguments in commands(shown)] == [True, True, True]
    assert list(commands("python3 -m venv /opt/layerfarm  # layerfarm gc")) == []
    assert list(commands("job=$(/opt/layerfarm/bin/layerfarm jobs ls 2>log)")) == [["jobs", "ls"]]
    assert refusal(["gc"]) and not refusal(["gc"], whole=False)


def test_output_is_compared_exactly_except_ellipses() -> None:
    assert as_shown("job: …\nlayer: sha256:…\n", "job: 1\nlayer: sha256:ab\n")
    assert as_shown("a\n…\n", "a\nb\nc\n")
    assert not as_shown("a\n", "a\nb\n")
    assert not as_shown("a.c\n", "abc\n")


def _helps(command: click.Command, context: click.Context) -> Iterator[str]:
    yield command.help or ""
    yield command.epilog or ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _helps(below, click.Context(below, info_name=name, parent=context))
