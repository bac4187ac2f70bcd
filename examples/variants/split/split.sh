#!/usr/bin/env bash
# Cuts one person's reads into the regions of a BED file: /pfs/out/PERSON/REGION.bam, where a region is as in 17-1051-2100.
# A read that reaches into two regions is in both.
set -euo pipefail

# paths of this datum's files, from pfs
bam=${samples:?} bed=${genome:?}

out=/pfs/out/$(basename "$bam" .bam)
mkdir "$out"
# an index lies beside its BAM, and nothing can be written to in /pfs/samples
ln -s "$bam" /tmp/reads.bam
samtools index /tmp/reads.bam
while read -r chromosome start end; do
    from=$((start + 1))
    samtools view --no-PG -b -o "$out/$chromosome-$from-$end.bam" /tmp/reads.bam "$chromosome:$from-$end"
done <"$bed"
