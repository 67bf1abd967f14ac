"""Compression of a layer's tar: gzip blocks and zstd frames, equal bytes on every machine, read strictly."""

from layerfarm.jobs.compress.codecs import Codec, Compression, codec_id, compress, compression_of, media_type_for
from layerfarm.jobs.compress.decompress import decompress

__all__ = ["Codec", "Compression", "codec_id", "compress", "compression_of", "decompress", "media_type_for"]
