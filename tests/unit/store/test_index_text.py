"""The text of index.json: entries without tags by their subject, tags in order, and steady reading."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from layerfarm.jobs.store import MEDIA_TYPE_MANIFEST, REF_NAME, Descriptor, Layout
from layerfarm.jobs.store.descriptor import SUBJECT
from layerfarm.jobs.store.index import IndexFile
from layerfarm.jobs.store.index_text import IndexText


def entry(number: int, subject: str | None = None) -> Descriptor:
    annotations = None if subject is None else {SUBJECT: subject}
    digest = f"sha256:{number:064x}"
    return Descriptor.model_validate(
        {"mediaType": MEDIA_TYPE_MANIFEST, "digest": digest, "size": 1, "annotations": annotations}
    )


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "store")


def test_entries_without_tags_are_found_by_their_subject_however_the_index_came_about(layout: Layout) -> None:
    layout.tag("b", entry(1))
    layout.attach(entry(2, "sha256:b"), entry(3, "sha256:b"), entry(4, "sha256:c"))
    layout.tag("a", entry(5), referrers=[entry(6, "sha256:a")])
    layout.tag("b", entry(7))
    layout.update_index(lambda index: index.model_copy(update={"manifests": [*index.manifests, entry(8)]}))
    layout.attach(entry(9, "sha256:c"))
    text = layout.index_text()
    found = {
        subject: [str(one.digest)[-1] for place in places if (one := text.descriptor(place)) is not None]
        for subject, places in text.untagged.items()
    }
    assert found == {"sha256:b": ["2", "3"], "sha256:c": ["4", "9"], "sha256:a": ["6"], None: ["8"]}
    assert text.sorted_tags == ["a", "b"]
    raw = (layout.path / "index.json").read_bytes()
    fresh = type(text).parse(raw, "here")
    assert (fresh.untagged, fresh.sorted_tags, fresh.places) == (text.untagged, text.sorted_tags, text.places)


def test_a_referrer_is_attached_once(layout: Layout) -> None:
    for _ in range(2):
        layout.attach(entry(2, "sha256:b"))
        layout.tag("a", entry(1), referrers=[entry(2, "sha256:b"), entry(3, "sha256:b")])
    assert len(layout.index().manifests) == 3


def test_entries_of_other_tools_that_are_no_descriptors_are_stepped_over(layout: Layout) -> None:
    path = layout.path / "index.json"
    document = json.loads(path.read_bytes())
    document["manifests"] = [7, {"annotations": {SUBJECT: 5}}, {"annotations": SUBJECT}, {"digest": "x"}]
    path.write_text(json.dumps(document))
    text = layout.index_text()
    assert text.untagged == {None: [0, 1, 2, 3]}
    assert text.descriptor(0) is None
    layout.attach(entry(2, "sha256:b"))
    assert layout.index_text().untagged == {None: [0, 1, 2, 3], "sha256:b": [4]}


_DIGEST = f"sha256:{'a' * 64}"
_USUAL = f'"mediaType":"{MEDIA_TYPE_MANIFEST}","digest":"{_DIGEST}","size":1'


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (_USUAL, None),
        (f'{_USUAL},"annotations":{{"{REF_NAME}":"t","b":"c"}}', "t"),
        (f'{_USUAL},"artifactType":"a/b","annotations":{{"b":"c"}}', None),
        # Not as nearly all are, and read as documents.
        (f'{_USUAL},"annotations":{{"{REF_NAME}":"é"}}', "é"),
        (f'{_USUAL},"annotations":{{"a":"x\\"\\":\\"y","{REF_NAME}":"t"}}', "t"),
        (f'{_USUAL},"platform":{{"os":"linux"}},"annotations":{{"{REF_NAME}":"t"}}', "t"),
        (f'{_USUAL},"annotations":{{}}', None),
        (f'"size":1,"digest":"{_DIGEST}","mediaType":"m","annotations":{{"digest":"x","{REF_NAME}":"t"}}', "t"),
    ],
)
def test_an_index_is_cut_into_the_bytes_of_its_entries(entry: str, name: str | None) -> None:
    raw = f'{{"schemaVersion":2,"manifests":[{{{entry}}},{{{_USUAL}}},{{{entry}}}]}}'.encode()
    text = IndexText.parse(raw, "here")
    assert text.entries == [f"{{{each}}}".encode() for each in (entry, _USUAL, entry)]
    assert (text.names, text.encode(), text.raw) == ([name, None, name], raw, None)
    if name is not None:
        one = IndexText.parse(f'{{"schemaVersion":2,"manifests":[{{{entry}}}]}}'.encode(), "here")
        assert one.names_only(name, _DIGEST) and not one.names_only(name, _DIGEST.replace("a", "b"))


@pytest.mark.parametrize(
    "entry",
    [
        f'{_USUAL},"annotations":{{"{REF_NAME}":"first","{REF_NAME}":"last"}}',
        f'{_USUAL} ,"annotations":{{"{REF_NAME}":"last"}}',
        f'{_USUAL},"annotations":{{"{REF_NAME}":"\\u006cast"}}',
    ],
)
def test_an_index_that_another_tool_wrote_keeps_its_bytes_until_it_changes(entry: str) -> None:
    raw = f'{{"schemaVersion":2,"manifests":[{{{entry}}}]}}'.encode()
    text = IndexText.parse(raw, "here")
    assert (text.names, text.raw) == (["last"], raw)


def test_steady_reading_reads_once_and_sees_its_own_changes(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    real = IndexFile.raw
    monkeypatch.setattr(IndexFile, "raw", lambda file: (reads.update([str(file.path)]), real(file))[1])
    layout.tag("mine", entry(1))
    other = threading.Thread(target=lambda: Layout.open(layout.path).tag("other", entry(2)))
    with layout.steady(), layout.steady():
        reads.clear()
        for _ in range(5):
            assert layout.tags() == ["mine"]
            assert layout.find("mine")
        assert not reads
        other.start()
        other.join()
        assert layout.tags() == ["mine"]
        layout.tag("more", entry(3))
        assert layout.tags() == ["mine", "other", "more"]
    reads.clear()
    assert layout.tags() == ["mine", "other", "more"]
    assert sum(reads.values()) == 1
