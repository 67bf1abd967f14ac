"""The fenced blocks of a page, and what the comment before each says of it.

A comment of its own, not words after the language: those make MkDocs take the block for a paragraph.

``<!-- run -->``            a test runs it, in a directory that all such blocks of the page share
``<!-- run: STAGE -->``     the same on a stage of ``stages.py``, which may begin with something in the directory
``<!-- file: PATH -->``     it is the content of that file (``<!-- file: PATH, STAGE -->``)
``<!-- skip: why -->``      it is not run, and why; a test that does it instead is named ``tests/….py::test_…``
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

COMMANDS = frozenset(("console", "sh", "python"))
"""Languages whose blocks are run: each needs a comment that names its test."""
TEXTS = frozenset(("text", "yaml", "toml", "json", "go", "mermaid"))

_COMMENT = re.compile(r"<!--\s*(run|file|skip)(?:: (.*?))?\s*-->\s*", re.DOTALL)
_PROMPT = re.compile(r"(?P<host>[a-z][a-z0-9-]*)?\$ +(?P<command>.*)")
_CODE = re.compile(r"#.*exit code (\d+)")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block."""

    page: Path
    line: int
    language: str
    """Empty for one that is indented, or has none."""
    mark: str
    """``run``, ``file``, ``skip``, or empty."""
    about: str
    """The text after the mark."""
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def stage(self) -> str:
        return (
            self.about.rpartition(", ")[2]
            if self.mark == "file" and ", " in self.about
            else (self.about if self.mark == "run" else "")
        )


@dataclass(frozen=True)
class Step:
    """A command, and what the page shows that it prints; nothing shown is nothing promised."""

    command: str
    shown: str
    stays: bool = False
    """It is typed on another machine, and goes on there."""

    @property
    def code(self) -> int:
        """Exit code; 0 unless a comment names another."""
        said = _CODE.search(self.command)
        return int(said[1]) if said else 0


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    found = []
    before = ("", "")
    for token in MarkdownIt().parse(page.read_text()):
        comment = _COMMENT.fullmatch(token.content) if token.type == "html_block" else None
        if comment:
            before = (comment[1], " ".join((comment[2] or "").split()))
            continue
        if token.type in ("fence", "code_block"):
            line = token.map[0] + 1 if token.map else 0
            found.append(Block(page, line, token.info.strip(), *before, token.content))
        before = ("", "")
    return found


def steps(block: Block) -> list[Step]:
    """The commands of a ``console`` block, each with what is shown below it; of ``sh``, the whole as one."""
    if block.language != "console":
        return [Step(block.text, "")]
    found: list[Step] = []
    for line in block.text.splitlines():
        prompt = _PROMPT.fullmatch(line)
        if prompt:
            found.append(Step(prompt["command"], "", stays=(prompt["host"] or "").startswith("worker")))
            continue
        assert found, f"{block}: what is shown belongs to no command"
        last = found[-1]
        if last.command.endswith("\\") and not last.shown:
            found[-1] = Step(f"{last.command}\n{line}", "", last.stays)
        else:
            found[-1] = Step(last.command, f"{last.shown}{line}\n", last.stays)
    return found
