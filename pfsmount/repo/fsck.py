"""Checking a whole store: every invariant by name (docs/FSCK.md), what is lost where one does not hold, and what to do.

Plain checking changes nothing, locks nothing and runs beside readers and writers. The order is: objects (`objects.object_check`, which
looks into them by `tree.check`, with `data` by `repo.fsck_files`, and here), then repos, refs and worktrees (`repo.fsck_refs`), and only
where something is damaged a walk through all commits that says which paths that concerns (`repo.fsck_impact`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pfsmount.errors import Corrupt, NotFound, PfsError
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import Buffer
from pfsmount.objects.index_probe import IndexProbe, begin_probe
from pfsmount.objects.invariants import Damage, Finding, Findings, Invariant, Severity
from pfsmount.objects.lane import Ticket
from pfsmount.objects.layout import read_store_info
from pfsmount.objects.object_check import ObjectCheck
from pfsmount.objects.object_look import ProgressBar, Reference, References, Visitor
from pfsmount.objects.segment import TINY_MAX, Location, RecordKind
from pfsmount.objects.store import ObjectStore
from pfsmount.objects.windows_ahead import WindowsAhead
from pfsmount.repo.commit import Commit, decode_commit, parse_root
from pfsmount.repo.fsck_files import LargeFiles
from pfsmount.repo.fsck_impact import Impact, find_impact
from pfsmount.repo.fsck_refs import RefCheck
from pfsmount.repo.store import Store
from pfsmount.tree.check import COMMIT, TreeCheck

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many bytes of how many are."""
_POSITIONS = 200_000


@dataclass(slots=True)
class Report:
    """What a check found."""

    findings: Findings = field(default_factory=Findings)
    damage: Damage = field(default_factory=Damage)
    objects: Counter[RecordKind] = field(default_factory=Counter)
    """Objects in the index, by kind."""
    bytes_checked: int = 0
    data: bool = False
    """Whether every piece was checked against its hash."""
    impact: Impact = field(default_factory=Impact)
    unindexed: dict[ObjectId, Location] = field(default_factory=dict)
    """Intact objects in segments that the index does not name."""
    index_lost: bool = False
    """The index cannot be used, and nothing else could be checked."""

    @property
    def clean(self) -> bool:
        """True when nothing is lost and nothing needs repair."""
        return not self.findings.count(Severity.LOST) and not self.findings.count(Severity.REPAIRABLE)


def check(
    store: Store,
    *,
    data: bool = False,
    progress: Progress | None = None,
    known: Report | None = None,
    ahead: WindowsAhead | None = None,
) -> Report:
    """Check a store; with `data` also each piece and each large file against its hash. Changes nothing.

    `known` begins the report: what an earlier check found in the data, which this one does not read. `ahead` is a process that helps.
    """
    report = Report(data=data) if known is None else known
    bar = ProgressBar(progress)
    files = LargeFiles(store.objects, report.findings, report.damage) if data else None
    objects = ObjectCheck(
        store.objects, report.findings, report.damage, _Visitor(store.objects, report, files), bar, ahead
    )
    try:
        with files or nullcontext():
            objects.run(data=data)
            if files is not None:
                files.finish(bar)
        RefCheck(store, report.findings, report.damage).run()
    except Corrupt as error:  # of rows that every look goes through
        report.findings.add(Finding.of(Invariant.INDEX_READABLE, error.message))
    report.objects, report.bytes_checked = objects.counts, objects.bytes_checked
    report.unindexed = objects.unindexed
    if report.damage:
        bar.what = "finding what is affected"
        bar.add(0)
        try:
            report.impact = find_impact(store, report.damage)
        except Corrupt as error:
            report.findings.add(Finding.of(Invariant.INDEX_READABLE, error.message))
        else:
            _relax(report)
    return report


def _relax(report: Report) -> None:
    """What only refers to something missing, and is itself needed by nothing, is waiting for gc: no damage."""
    waiting = [
        id
        for id in report.impact.unused_ids
        if report.damage.objects.get(id) in (Invariant.OBJECT_PRESENT, Invariant.OBJECT_INDEXED)
    ]
    for id in waiting:
        del report.damage.objects[id]
        report.findings.take_back(id)
    report.impact.unused -= len(waiting)
    if waiting:
        text = f"something that nothing needs refers to {len(waiting):,} objects that are gone; 'pfs gc' drops it"
        report.findings.add(Finding.of(Invariant.OBJECT_PRESENT, text, severity=Severity.HARMLESS))
    for key in report.impact.results:
        text = f"the result of the datum {key.hex()[:16]} is not whole: it will have to run again"
        report.findings.add(Finding.of(Invariant.RESULTS_TARGET, text, object=key))


def check_store(
    path: Path, *, data: bool = False, progress: Progress | None = None, probe: IndexProbe | None = None
) -> Report:
    """As `check`, for a store that may be too damaged to be opened. Raises NotAStore, StoreTooNew, Busy, PermissionDenied.

    `probe` is that of its index, if somebody has begun it already.
    """
    read_store_info(path)
    if probe is None:
        with begin_probe(path, data=data) as own:
            return check_store(path, data=data, progress=progress, probe=own)
    problem = probe.wait()
    if problem is None:
        try:
            store = Store.open(path)
        except Corrupt as error:
            problem = error.message
        else:
            with store:
                return check(store, data=data, progress=progress, ahead=probe.ahead)
    report = Report(data=data)
    report.findings.add(Finding.of(Invariant.INDEX_READABLE, problem))
    report.index_lost = True
    return report


def left_of(store: Store, report: Report) -> Report:
    """Of a check of the data what is still so after a repair, to go on from."""
    left = Report(data=report.data)
    for finding in report.findings:
        id = finding.object
        if id is None or not report.data:
            continue
        if finding.invariant is Invariant.FILE_HASH or (
            finding.invariant is Invariant.OBJECT_HASH and _is_damaged_data(store.objects, id)
        ):
            left.findings.add(finding)
            left.damage.objects[id] = finding.invariant
    return left


def _is_damaged_data(objects: ObjectStore, id: ObjectId) -> bool:
    """Whether a piece is damaged; what lies in tiny and meta segments, every check finds."""
    try:
        place = objects.locate(id)
        if place is not None and place.kind is RecordKind.PIECE and place.length > TINY_MAX:
            objects.get(id)
    except NotFound:
        return False
    except (PfsError, OSError):
        return True
    return False


def visitor_of(objects: ObjectStore) -> Visitor:
    """Says of an object what it refers to."""
    return _Visitor(objects, Report())


class _Visitor(Visitor):
    """Looks into objects of every kind."""

    def __init__(self, objects: ObjectStore, report: Report, files: LargeFiles | None = None) -> None:
        self._objects = objects
        self._report = report
        self._files = files
        self._trees = TreeCheck(objects, report.findings, report.damage)
        self._positions: dict[ObjectId, tuple[int, ObjectId | None]] = {}

    @property
    def wanted(self) -> Set[ObjectId]:
        """Those with which a large file goes on."""
        return frozenset() if self._files is None else self._files.wanted

    def large_file(self, id: ObjectId, place: Location) -> None:
        """Let it be hashed as its pieces go by."""
        if self._files is not None:
            self._files.add(id, place)

    def piece(self, id: ObjectId, data: Buffer) -> Sequence[Ticket]:
        """Hash it for the files that go on with it."""
        return () if self._files is None else self._files.piece(id, data)

    def visit(self, kind: RecordKind, id: ObjectId, payload: bytes) -> References:
        """Check an object by itself; what it refers to."""
        if kind is RecordKind.NODE:
            return self._trees.node(id, payload)
        if kind is RecordKind.MANIFEST:
            return self._trees.manifest(id, payload)
        if kind is RecordKind.XATTRS:
            return self._trees.xattrs(id, payload)
        return self._commit(id, payload) if kind is RecordKind.COMMIT else []

    def _commit(self, id: ObjectId, payload: bytes) -> list[Reference]:
        try:
            commit = decode_commit(payload)
            record = (commit.provenance or {}).get("record")
            roots = [commit.tree] if record is None else [commit.tree, parse_root(record)]
        except (Corrupt, ArithmeticError, ValueError, KeyError, TypeError, AttributeError):
            self._found(Invariant.COMMIT_FORMAT, id, "a commit cannot be decoded")
            return []
        references = [Reference(parent, COMMIT) for parent in commit.parents]
        for root in roots:
            references += self._trees.entry_references(id, root)
        self._chain(commit)
        return references

    def _chain(self, commit: Commit) -> None:
        """Height and jump, as far as the commits above can be read."""
        if len(self._positions) >= _POSITIONS:
            self._positions.clear()
        self._positions[commit.id] = (commit.height, commit.jump)
        if not commit.parents:
            expected: tuple[int, ObjectId | None] = (0, None)
        else:
            parent = commit.parents[0]
            try:
                height, jump = self._position(parent)
                above = (height, parent) if jump is None else (self._position(jump)[0], jump)
                far = above if jump is None else self._far(above)
            except (PfsError, OSError):
                return
            near = height - above[0] == above[0] - far[0]
            expected = (height + 1, far[1] if near else parent)
        if (commit.height, commit.jump) != expected:
            self._found(
                Invariant.COMMIT_CHAIN, commit.id, "a commit's height or jump does not follow from its parent's"
            )

    def _far(self, jump: tuple[int, ObjectId]) -> tuple[int, ObjectId]:
        beyond = self._position(jump[1])[1]
        return jump if beyond is None else (self._position(beyond)[0], beyond)

    def _position(self, id: ObjectId) -> tuple[int, ObjectId | None]:
        """Height and jump of a commit. Raises NotFound, Corrupt."""
        found = self._positions.get(id)
        if found is None:
            commit = decode_commit(self._objects.get(id))
            found = self._positions[id] = (commit.height, commit.jump)
        return found

    def _found(self, invariant: Invariant, id: ObjectId, text: str) -> None:
        self._report.findings.add(Finding.of(invariant, f"{text}: {id.hex()}", object=id))
        if invariant is Invariant.COMMIT_FORMAT:
            self._report.damage.objects[id] = invariant
