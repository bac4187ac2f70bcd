"""Writes the reference of each region of /pfs/genome/regions.bed to /pfs/out: a FASTA with N for all that is not in it or near it.

Reads that begin or end in a region reach beyond it, and the caller aligns them anew: so what is near counts.
"""

from __future__ import annotations

from pathlib import Path

GENOME, OUT = Path("/pfs/genome"), Path("/pfs/out")
NEAR = 300
LINE = 60

chromosomes: dict[str, str] = {}
for record in (GENOME / "reference.fa").read_text().split(">")[1:]:
    title, _, bases = record.partition("\n")
    chromosomes[title.split()[0]] = bases.replace("\n", "")

for line in (GENOME / "regions.bed").read_text().splitlines():
    name, start, end = line.split()
    bases = chromosomes[name]
    left, right = max(0, int(start) - NEAR), min(len(bases), int(end) + NEAR)
    masked = "N" * left + bases[left:right] + "N" * (len(bases) - right)
    lines = [masked[place : place + LINE] for place in range(0, len(masked), LINE)]
    (OUT / f"{name}-{int(start) + 1}-{end}.fa").write_text("\n".join((f">{name}", *lines, "")))
