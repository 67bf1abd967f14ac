"""eStargz layers, as stargz-snapshotter documents and reads them.

A gzip stream of the tar in which the content of each file, or each chunk of a large one, begins a gzip member. The last
entry of the tar is the table of contents (TOC), an empty member with its offset ends the blob. stargz-snapshotter
fetches files when they are first read; to all other readers it is a gzip stream like any other, with two more files.

:mod:`writer` and :mod:`check` mirror each other; :mod:`marks` has the names, annotations and the footer.
"""
