"""Transforming images: the owner of each file, the division into layers, and the proof that the result is equal."""
