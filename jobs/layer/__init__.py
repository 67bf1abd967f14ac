"""Layers: deltas to tar (:mod:`generate`), tar to tree (:mod:`extract`), and the codecs around the tar."""

from layerfarm.jobs.layer.codecs import Codec, Compression, codec_id, compress, compression_of, media_type_for
from layerfarm.jobs.layer.decompress import decompress
from layerfarm.jobs.layer.extract import ExtractOptions, Extractor, unpack_layer
from layerfarm.jobs.layer.generate import GenerateOptions, generate_layer
from layerfarm.jobs.layer.idmap import IdMap, IdRange
from layerfarm.jobs.layer.insert import insert_layer, whiteout_layer
from layerfarm.jobs.limits import Limits

__all__ = [
    "Codec",
    "Compression",
    "ExtractOptions",
    "Extractor",
    "GenerateOptions",
    "IdMap",
    "IdRange",
    "Limits",
    "codec_id",
    "compress",
    "compression_of",
    "decompress",
    "generate_layer",
    "insert_layer",
    "media_type_for",
    "unpack_layer",
    "whiteout_layer",
]
