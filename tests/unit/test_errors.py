"""The tree of errors."""

from __future__ import annotations

from layerfarm.jobs.errors import BundleError


def test_message_is_one_printable_line_whatever_its_parts_hold() -> None:
    error = BundleError("field org.\x7fx: not\na string", where=b"/a\xff\n", hint="see\r\x1b[1m")
    assert str(error) == r"field org.\x7fx: not\na string: /a\udcff\n (see\r\x1b[1m)"
    assert error.args == (error.what,)
