"""A strict reader of HTML pages: elements as a tree, and the rules that a page for everyone keeps."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "img", "input", "link"}
_HEADING = re.compile(r"h([1-6])")
_FORBIDDEN = {"script", "img", "iframe", "link", "object", "embed", "form", "base", "foreignobject", "use", "image"}


class Element:
    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element | str] = []

    def __iter__(self) -> Iterator[Element]:
        """The elements in it, in the order of the page."""
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child

    def all(self, *tags: str) -> list[Element]:
        return [element for element in self if element.tag in tags]

    @property
    def text(self) -> str:
        parts = (child if isinstance(child, str) else child.text for child in self.children)
        return re.sub(r"\s+", " ", "".join(parts)).strip()


class _Parser(HTMLParser):
    """Fails at an element that is not closed in order, and at an attribute that is given twice."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), self.get_starttag_text()
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(text: str) -> Element:
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert len(parser.open) == 1, [element.tag for element in parser.open]
    return parser.open[0]


class Table:
    """A table by its columns."""

    def __init__(self, element: Element) -> None:
        (head,) = element.all("thead")
        (body,) = element.all("tbody")
        (self.caption,) = (child.text for child in element.all("caption"))
        self.columns = [cell.text for cell in head.all("th")]
        self.elements = [[cell for cell in row.children if isinstance(cell, Element)] for row in body.all("tr")]

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        """The cells of each row by column, by the header of the row."""
        return {row[0].text: dict(zip(self.columns, (cell.text for cell in row), strict=True)) for row in self.elements}


def tables(page: Element) -> list[Table]:
    return [Table(element) for element in page.all("table")]


def check(text: str) -> Element:
    """Fail unless the page is well formed, accessible and self-contained; return it."""
    page = parse(text)
    _check_ids(page)
    _check_headings(page)
    for element in page.all("table"):
        _check_table(element)
    for element in page.all("svg"):
        _check_picture(element)
    _check_self_contained(page)
    return page


def _check_ids(page: Element) -> None:
    ids = [element.attributes["id"] for element in page if "id" in element.attributes]
    assert len(ids) == len(set(ids)), ids
    for element in page:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(element.attributes.get(name, "").split()) <= set(ids), element.attributes
        if element.tag == "a":
            assert element.attributes["href"].removeprefix("#") in ids, element.attributes
            assert element.text
    (first,) = (element for element in page if element.attributes.get("class") == "skip")
    assert page.all("a")[0] is first
    assert first.attributes["href"] == "#report"
    assert [len(page.all(tag)) for tag in ("html", "head", "header", "main", "nav", "h1")] == [1] * 6
    assert [element.text != "" for element in page.all("head")[0].all("title")] == [True]


def _check_headings(page: Element) -> None:
    level = 0
    for element in page:
        if found := _HEADING.fullmatch(element.tag):
            assert int(found[1]) <= level + 1, element.text
            assert element.text
            level = int(found[1])
    for section in page.all("section"):
        assert section.attributes["aria-labelledby"] in [each.attributes.get("id") for each in section.all("h2")]
    for details in page.all("details"):
        assert next(iter(details)).tag == "summary"


def _check_table(element: Element) -> None:
    assert element.attributes["role"] == "table"
    assert next(iter(element)).tag == "caption"
    table = Table(element)
    assert table.caption
    assert table.columns and all(table.columns)
    roles = {"thead": "rowgroup", "tbody": "rowgroup", "tr": "row", "td": "cell"}
    for part in element:
        if part.tag in roles:
            assert part.attributes["role"] == roles[part.tag]
        if part.tag == "th":
            wanted = {"col": "columnheader", "row": "rowheader"}
            assert part.attributes["role"] == wanted[part.attributes["scope"]]
    for row in table.elements:
        assert [cell.tag for cell in row] == ["th"] + ["td"] * (len(table.columns) - 1), row[0].text
        assert [cell.attributes["data-label"] for cell in row[1:]] == table.columns[1:]


def _check_picture(svg: Element) -> None:
    """A picture has a text, or is hidden because the text beside it has the same information."""
    if svg.attributes.get("role") == "img":
        (title,) = svg.all("title")
        assert title.attributes["id"] == svg.attributes["aria-labelledby"]
        assert len(title.text) > 40
    else:
        assert svg.attributes["aria-hidden"] == "true"
        assert not svg.text


def _check_self_contained(page: Element) -> None:
    for element in page:
        assert element.tag not in _FORBIDDEN, element.tag
        assert not {"style", "src", "srcset", "action"} & element.attributes.keys()
        assert not [name for name in element.attributes if name.startswith("on")]
    (style,) = page.all("style")
    content = "".join(map(str, style.children))
    assert "url(" not in content and "@import" not in content
    policy = next(
        each.attributes["content"]
        for each in page.all("meta")
        if each.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    digest = b64encode(sha256(content.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
