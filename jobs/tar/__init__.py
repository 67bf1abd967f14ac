"""Tar streams: reader, writer and their headers. What Go's archive/tar reads is the measure (image-spec layer.md)."""
