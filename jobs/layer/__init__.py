"""Layers: deltas to tar (:mod:`generate`), and tar to tree (:mod:`extract`)."""

from layerfarm.jobs.layer.extract import ExtractOptions, Extractor, unpack_layer
from layerfarm.jobs.layer.generate import GenerateOptions, generate_layer
from layerfarm.jobs.layer.idmap import IdMap, IdRange
from layerfarm.jobs.layer.insert import insert_layer, whiteout_layer

__all__ = [
    "ExtractOptions",
    "Extractor",
    "GenerateOptions",
    "IdMap",
    "IdRange",
    "generate_layer",
    "insert_layer",
    "unpack_layer",
    "whiteout_layer",
]
