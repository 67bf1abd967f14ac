"""Manifests of trees: walk, hash in shards, merge, write and read as mtree, compare into deltas."""

from layerfarm.jobs.mtree.clock import NO_CLOCK, Clock, next_tick, read_clock
from layerfarm.jobs.mtree.compare import compare, mask, simplify
from layerfarm.jobs.mtree.deltas import DeltaSummary, read_deltas, write_deltas
from layerfarm.jobs.mtree.fragments import merge_fragments
from layerfarm.jobs.mtree.hashing import hash_shard
from layerfarm.jobs.mtree.known import KnownTree
from layerfarm.jobs.mtree.model import (
    ROOT,
    UNRECORDED,
    UNRECORDED_TIME,
    Delta,
    DeltaKind,
    Entry,
    EntryType,
    Xattrs,
    mtree_key,
)
from layerfarm.jobs.mtree.outputs import Output, as_it_is, write_tree
from layerfarm.jobs.mtree.read import read_full, read_manifest
from layerfarm.jobs.mtree.shards import Shard, plan_shards
from layerfarm.jobs.mtree.snapshot import snapshot
from layerfarm.jobs.mtree.splice import Step, read_script
from layerfarm.jobs.mtree.statcache import StatCache, Suspects, find_suspects, open_stat_cache, write_stat_cache
from layerfarm.jobs.mtree.walk import Walk, walk_tree
from layerfarm.jobs.mtree.write import write_extra

__all__ = [
    "NO_CLOCK",
    "ROOT",
    "UNRECORDED",
    "UNRECORDED_TIME",
    "Clock",
    "Delta",
    "DeltaKind",
    "DeltaSummary",
    "Entry",
    "EntryType",
    "KnownTree",
    "Output",
    "Shard",
    "StatCache",
    "Step",
    "Suspects",
    "Walk",
    "Xattrs",
    "as_it_is",
    "compare",
    "find_suspects",
    "hash_shard",
    "mask",
    "merge_fragments",
    "mtree_key",
    "next_tick",
    "open_stat_cache",
    "plan_shards",
    "read_clock",
    "read_deltas",
    "read_full",
    "read_manifest",
    "read_script",
    "simplify",
    "snapshot",
    "walk_tree",
    "write_deltas",
    "write_extra",
    "write_stat_cache",
    "write_tree",
]
