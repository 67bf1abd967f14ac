"""Tar streams: reader, writer and their headers. Go's archive/tar is the reference (image-spec layer.md)."""
