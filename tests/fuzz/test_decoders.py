"""No bytes make a decoder do anything but decode them or say that they are wrong: no other error, no endless work, no memory beyond their size."""

from __future__ import annotations

import ast
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fuzz.decoders import DECODERS, NOT_DECODERS, Decoder
from tests.fuzz.mutation import mutate, mutate_json

SHORT_S = 0.1
LONG_S = 8.0
ROOM = 512 << 20
"""Bytes of address space that a decoder may take beyond what the process has: a made-up length asks for more."""
PATIENCE_S = 5
_WAYS_IN = ("decode", "read_", "parse_", "scan", "replay")


@contextmanager
def bounded() -> Iterator[None]:
    """Little memory, little time for one input."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + ROOM, before[1]))

    def too_long(*_: object) -> None:
        raise AssertionError(f"one input took more than {PATIENCE_S} s")

    old = signal.signal(signal.SIGVTALRM, too_long)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(decoder: Decoder, data: bytes) -> None:
    """One input: it is decoded, and is then the one encoding of what it says; or it is wrong."""
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE_S)
    try:
        found = decoder.read(data)
        if decoder.canonical is not None:
            assert decoder.canonical(found) == data, "another encoding of the same"
    except decoder.errors:
        pass
    except BaseException as error:
        error.add_note(f"{decoder.name} of {data[:4000]!r}")
        raise


def fuzz(decoder: Decoder, seconds: float, seed: int) -> int:
    """Mutated examples for so long; how many there were."""
    dice = random.Random(seed)
    seeds = list(decoder.seeds)
    for data in seeds:
        attempt(decoder, decoder.seal(data))
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = dice.choice(seeds)
        attempt(decoder, decoder.seal(mutate_json(dice, data) if decoder.json else mutate(dice, data, seeds)))
        count += 1
    return count


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_what_is_wrong_is_said_to_be(decoder: Decoder) -> None:
    with bounded():
        fuzz(decoder, SHORT_S, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_for_longer_and_with_other_inputs_each_time(decoder: Decoder, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    with bounded():
        count = fuzz(decoder, LONG_S, seed)
    with capsys.disabled():
        print(f"\n{decoder.name}: {count:,} inputs (seed {seed})", end="")


@pytest.mark.parametrize("decoder", [d for d in DECODERS if d.canonical is not None], ids=lambda decoder: decoder.name)
def test_an_example_is_what_its_meaning_is_encoded_as(decoder: Decoder) -> None:
    assert decoder.canonical is not None
    for data in decoder.seeds:
        assert decoder.canonical(decoder.read(data)) == data


def ways_in() -> Iterator[str]:
    """All public functions and methods whose names say that they read something."""
    for package in ("pfsmount", "runner"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef):
                    found = [(node.name, node.name)]
                elif isinstance(node, ast.ClassDef):
                    found = [
                        (f"{node.name}.{one.name}", one.name) for one in node.body if isinstance(one, ast.FunctionDef)
                    ]
                else:
                    continue
                yield from (
                    f"{module}:{full}" for full, name in found if name.startswith(_WAYS_IN) and name != "decoded"
                )


def test_every_decoder_is_known() -> None:
    known = {decoder.name for decoder in DECODERS} | NOT_DECODERS.keys()
    there = {name for name in ways_in() if not name.endswith(".read_nowait")}
    missing = sorted(there - known)
    assert not missing, f"add them to tests/fuzz/decoders.py, with valid examples: {missing}"
