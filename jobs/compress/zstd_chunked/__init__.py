"""zstd:chunked layers, as containers/storage writes and reads them (its ``pkg/chunked``).

A zstd stream of the tar with a frame for the content of each file, or for each chunk of a large one. Skippable frames
follow: the table of contents (TOC), the tar-split data and a footer. Podman, CRI-O and bootc fetch only the frames of
files that they lack; to all other readers it is a zstd stream like any other.

:mod:`writer` and :mod:`check` mirror each other; both describe tar members by :mod:`describe`.
"""
