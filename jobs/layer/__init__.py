"""Layers: deltas to tar (:mod:`generate`), and tar to tree (:mod:`extract`)."""

from layerfarm.jobs.layer.delta_keys import read_keys
from layerfarm.jobs.layer.extract import ExtractOptions, Extractor, unpack_layer
from layerfarm.jobs.layer.generate import (
    GenerateOptions,
    generate_from_keys,
    generate_layer,
    insert_layer,
    whiteout_layer,
)
from layerfarm.jobs.layer.owners import IdMap, IdRange

__all__ = [
    "ExtractOptions",
    "Extractor",
    "GenerateOptions",
    "IdMap",
    "IdRange",
    "generate_from_keys",
    "generate_layer",
    "insert_layer",
    "read_keys",
    "unpack_layer",
    "whiteout_layer",
]
