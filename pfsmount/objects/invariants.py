"""What must be true of a store, by name, and what a check found not to be.

The names are stable: they stand in the output of `pfs fsck`, in its JSON and in `docs/FSCK.md`.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from pfsmount.ids import ObjectId
from pfsmount.objects.segment import Location

_KEPT = 1000
"""Findings of one invariant that are kept; more are only counted."""


class Severity(enum.Enum):
    """What a broken invariant means for the user."""

    LOST = "lost"
    """Something that was stored cannot be read any more."""
    REPAIRABLE = "repairable"
    """Nothing is lost: what is wrong can be made again from what is there."""
    HARMLESS = "harmless"
    """Nothing to do."""


_LOST, _REPAIRABLE, _HARMLESS = Severity


class Invariant(enum.Enum):
    """An invariant: its name, what it means when it is broken, and the sentence that must be true."""

    INDEX_READABLE = ("index-readable", _REPAIRABLE, "each page and key of the index can be read, in order")
    SEGMENT_PRESENT = ("segment-present", _LOST, "each segment that the index knows has its file")
    SEGMENT_KNOWN = ("segment-known", _REPAIRABLE, "each segment file is in the index, and no number is used twice")
    SEGMENT_LENGTH = ("segment-length", _LOST, "a segment is at least as long as what was published of it")
    SEGMENT_READABLE = ("segment-readable", _LOST, "the disk gives back each byte of a segment")
    SEGMENT_HEADER = ("segment-header", _REPAIRABLE, "a tiny or meta segment begins with its header")
    SEGMENT_OPEN = (
        "segment-open",
        _REPAIRABLE,
        "each unsealed segment with anything in it, and no sealed one, is listed as open",
    )
    RECORD_CHECK = ("record-check", _REPAIRABLE, "each record of a tiny or meta segment has its header with its check")
    CONTENTS = ("contents", _REPAIRABLE, "each piece of a data segment stands in a table of contents")
    CONTENTS_CHAIN = ("contents-chain", _REPAIRABLE, "the tables of contents of a data segment can be followed back")
    FOOTER = ("footer", _REPAIRABLE, "a sealed data segment ends with a table of all its pieces")
    PADDING = ("padding", _HARMLESS, "behind a piece there are zeros up to the next block")
    OBJECT_LOCATION = ("object-location", _REPAIRABLE, "the index names only places where the object is")
    OBJECT_INDEXED = ("object-indexed", _REPAIRABLE, "the index names each object that is needed and stored")
    OBJECT_HASH = ("object-hash", _LOST, "the bytes of an object are what its id says")
    OBJECT_PRESENT = ("object-present", _LOST, "whatever an object refers to is in the store")
    REFERENCE_FITS = ("reference-fits", _LOST, "what is referred to has the kind and size that the reference says")
    NODE_FORMAT = ("node-format", _LOST, "a tree node can be decoded, its names are valid and sorted")
    NODE_BOUNDARIES = ("node-boundaries", _HARMLESS, "nodes end where the names say, and a root is as low as can be")
    NODE_SUMS = ("node-sums", _LOST, "a node's parent knows its content id, counts, sizes and last name")
    MANIFEST_FORMAT = ("manifest-format", _LOST, "a manifest can be decoded and its parts fit their places")
    FILE_HASH = ("file-hash", _LOST, "a large file's id is the hash of all its pieces together")
    XATTRS_FORMAT = ("xattrs-format", _LOST, "extended attributes can be decoded")
    COMMIT_FORMAT = ("commit-format", _LOST, "a commit can be decoded")
    COMMIT_CHAIN = ("commit-chain", _LOST, "a commit's height and jump follow from its first parent's")
    COMMIT_KNOWN = ("commit-known", _REPAIRABLE, "the commits of a repo are listed with their heights")
    REPO_ROW = ("repo-row", _REPAIRABLE, "each repo can be decoded and has its default branch")
    REF_TARGET = ("ref-target", _LOST, "each branch, tag and job names a commit that is in the store")
    REFLOG_ORDER = ("reflog-order", _REPAIRABLE, "the changes in the index are numbered without a gap")
    REFS_LOG = ("refs-log", _REPAIRABLE, "refs.log, replayed, gives the repos and refs of the index")
    REFS_LOG_TAIL = ("refs-log-tail", _HARMLESS, "refs.log ends with the last change")
    WORKTREE_BASE = ("worktree-base", _LOST, "the commit under uncommitted changes is in the store")
    JOURNAL_CHAIN = ("journal-chain", _LOST, "the journal of uncommitted changes can be read to its end")
    MERGE_RECORD = ("merge-record", _REPAIRABLE, "the record of a merge that waits names a commit in the store")
    RESULTS_TARGET = ("results-target", _REPAIRABLE, "each result that jobs may use again is in the store")

    def __init__(self, label: str, severity: Severity, sentence: str) -> None:
        self.label = label
        self.severity = severity
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Finding:
    """One place where an invariant does not hold."""

    invariant: Invariant
    message: str
    object: ObjectId | None = None
    segment: int | None = None
    offset: int | None = None
    """Byte in the segment."""
    severity: Severity = Severity.LOST

    @classmethod
    def of(
        cls,
        invariant: Invariant,
        message: str,
        *,
        object: ObjectId | None = None,
        place: Location | None = None,
        segment: int | None = None,
        offset: int | None = None,
        severity: Severity | None = None,
    ) -> Finding:
        """A finding with the severity of its invariant, unless said."""
        if place is not None:
            segment, offset = place.segment, place.offset
        return cls(invariant, message, object, segment, offset, severity or invariant.severity)


class Findings:
    """All findings of a check: counted, and the first of each invariant kept."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[Invariant, Severity]] = Counter()
        self._kept: dict[Invariant, list[Finding]] = {}

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it unless there are very many of its kind."""
        self.counts[finding.invariant, finding.severity] += 1
        kept = self._kept.setdefault(finding.invariant, [])
        if len(kept) < _KEPT:
            kept.append(finding)

    def take_back(self, object: ObjectId) -> None:
        """What was found about an object is no finding after all."""
        for invariant, kept in self._kept.items():
            for finding in [one for one in kept if one.object == object]:
                kept.remove(finding)
                self.counts[invariant, finding.severity] -= 1

    def __iter__(self) -> Iterator[Finding]:
        for invariant in Invariant:
            yield from self._kept.get(invariant, ())

    def count(self, severity: Severity) -> int:
        """How many there are of a severity."""
        return sum(count for (_, of), count in self.counts.items() if of is severity)


@dataclass(slots=True)
class Damage:
    """Which objects cannot be read: by id where one is damaged or missing, by segment where the end or all of that is gone."""

    objects: dict[ObjectId, Invariant] = field(default_factory=dict)
    short: dict[int, int] = field(default_factory=dict)
    """Segment → how many bytes of it there are."""

    def __bool__(self) -> bool:
        return bool(self.objects or self.short)

    def reason(self, id: ObjectId, place: Location | None) -> Invariant | None:
        """Why an object cannot be read; None when nothing is known against it."""
        found = self.objects.get(id)
        if found is not None:
            return found
        if place is None:
            return Invariant.OBJECT_PRESENT
        size = self.short.get(place.segment)
        if size is not None and place.offset + place.length > size:
            return Invariant.SEGMENT_PRESENT if not size else Invariant.SEGMENT_LENGTH
        return None
