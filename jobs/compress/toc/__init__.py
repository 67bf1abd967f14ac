"""Layers with a table of contents (TOC), shared by zstd:chunked and eStargz.

The content of each file, or of each chunk of a large one, is compressed on its own. The table of contents says where in
the blob that is, and describes each entry of the tar. Clients read it in place of the tar and fetch what they lack.

:mod:`entries` is the document, :mod:`describe` makes an entry of a tar member, :mod:`frames` cuts a tar, and
:mod:`check` compares a layer with its table.
"""
