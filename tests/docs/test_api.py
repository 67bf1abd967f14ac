"""docs/api.md shows the public names, those in ``__all__`` of the modules that it names, and no other."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import cache
from types import ModuleType

import pytest

from layerfarm.jobs.errors import LayerfarmError
from tests.docs.blocks import ROOT, blocks

PAGE = ROOT / "docs/api.md"
DIRECTIVES = re.findall(r"^::: ([\w.]+)$", PAGE.read_text(), re.MULTILINE)
CODE = "\n".join(block.text for block in blocks(PAGE) if block.language == "python")


@cache
def shown() -> dict[str, set[str]]:
    """The names that the page shows, by module."""
    found: dict[str, set[str]] = {}
    for directive in DIRECTIVES:
        try:
            module = importlib.import_module(directive)
            names = set(module.__all__)
        except ModuleNotFoundError:
            place, _, name = directive.rpartition(".")
            module, names = importlib.import_module(place), {name}
        found.setdefault(module.__name__, set()).update(names)
    return found


@pytest.mark.parametrize("module", shown())
def test_page_shows_all_public_names_of_a_module_and_no_other(module: str) -> None:
    public = importlib.import_module(module)
    assert shown()[module] == set(public.__all__)
    assert [name for name in public.__all__ if not hasattr(public, name)] == []


def test_every_public_name_has_an_example() -> None:
    without = [
        name
        for module, names in shown().items()
        for name in names
        if not re.search(rf"\b{name}\b", CODE) and not _of_several(importlib.import_module(module), name)
    ]
    assert without == []


def _of_several(module: ModuleType, name: str) -> bool:
    """An error, of which one example shows several, or a class that only holds the fields of others."""
    value = getattr(module, name)
    return name in ("TransformRequest", "RewriteRequest") or (
        inspect.isclass(value) and issubclass(value, LayerfarmError)
    )


def test_examples_import_public_names_only() -> None:
    public = {f"{module}.{name}" for module, names in shown().items() for name in names} | set(shown())
    imported = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(CODE))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("layerfarm")
        for alias in node.names
    ]
    assert len(imported) > 20
    assert sorted(set(imported) - public) == []


def test_every_public_name_has_a_docstring() -> None:
    without = [
        f"{module}.{name}"
        for module, names in shown().items()
        for name in names
        if (inspect.isclass(value := getattr(importlib.import_module(module), name)) or inspect.isfunction(value))
        and not inspect.getdoc(value)
    ]
    assert without == []
