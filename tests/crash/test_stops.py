"""Kills and faults at every step of a command: `kill -9` before it or in the middle of a write; a full disk; a disk that fails.

What the kernel was given stays after a kill, so that everything acknowledged is there, fsynced or not. After a fault the command must say so in words, its
exit code must be true, and the same command must work when there is space again.
"""

from __future__ import annotations

import errno
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pfsmount.repo.store import Store
from tests.crash.checking import Acknowledged, View, check_store, view_at
from tests.crash.shim import ONWARDS, TORN, Done, Mode, error_name
from tests.crash.workloads import BRANCHED, FILLED, IMAGES, WORKLOADS, Command, Workload, World, prepare

STOPPED = (
    *(one for one in WORKLOADS if one.name in ("init", "put", "refs", "merge")),
    Workload("commit", FILLED, (("python", DIRTY, ""), ("pfs", "commit", "images@master", "-m", "work"))),
)
