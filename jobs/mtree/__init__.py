"""Manifests of trees: walk, hash in shards, merge, write and read as mtree, compare into deltas."""

from layerfarm.jobs.mtree.clock import NO_CLOCK, Clock, next_tick, read_clock
from layerfarm.jobs.mtree.compare import compare
from layerfarm.jobs.mtree.deltas import DeltaSummary, mask, read_deltas, simplify, write_deltas
from layerfarm.jobs.mtree.fragments import merge_fragments, merge_lines, parse_lines, write_all_extra
from layerfarm.jobs.mtree.hashing import Shard, hash_shard, plan_shards, snapshot
from layerfarm.jobs.mtree.model import (
    ROOT,
    UNRECORDED,
    UNRECORDED_TIME,
    Delta,
    DeltaKind,
    Entry,
    mtree_key,
)
from layerfarm.jobs.mtree.patch import Edit, ManifestPatch, read_edits
from layerfarm.jobs.mtree.read import read_full, read_manifest
from layerfarm.jobs.mtree.stat_cache import (
    Digests,
    Dirty,
    StatCache,
    find_dirty,
    open_stat_cache,
    sha256_of,
    write_stat_cache,
)
from layerfarm.jobs.mtree.walk import Walk
from layerfarm.jobs.mtree.walkers import walk_tree
from layerfarm.jobs.mtree.write import Output, write_extra, write_lines, write_tree

__all__ = [
    "NO_CLOCK",
    "ROOT",
    "UNRECORDED",
    "UNRECORDED_TIME",
    "Clock",
    "Delta",
    "DeltaKind",
    "DeltaSummary",
    "Digests",
    "Dirty",
    "Edit",
    "Entry",
    "ManifestPatch",
    "Output",
    "Shard",
    "StatCache",
    "Walk",
    "compare",
    "find_dirty",
    "hash_shard",
    "mask",
    "merge_fragments",
    "merge_lines",
    "mtree_key",
    "next_tick",
    "open_stat_cache",
    "parse_lines",
    "plan_shards",
    "read_clock",
    "read_deltas",
    "read_edits",
    "read_full",
    "read_manifest",
    "sha256_of",
    "simplify",
    "snapshot",
    "walk_tree",
    "write_all_extra",
    "write_deltas",
    "write_extra",
    "write_lines",
    "write_stat_cache",
    "write_tree",
]
