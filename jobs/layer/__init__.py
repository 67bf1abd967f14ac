"""Layers: deltas to tar (:mod:`generate`), tar to tree (:mod:`extract`), and the codecs around the tar."""

from jobs.layer.codecs import Codec, Compression, codec_id, compress, compression_of, media_type_for
from jobs.layer.decompress import decompress
from jobs.layer.extract import ExtractOptions, Extractor, unpack_layer
from jobs.layer.generate import GenerateOptions, generate_layer
from jobs.layer.idmap import IdMap, IdRange
from jobs.layer.insert import insert_layer, whiteout_layer
from jobs.limits import Limits

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
