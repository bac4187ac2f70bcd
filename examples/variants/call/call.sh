#!/usr/bin/env bash
# Calls the variants of one person's reads in one region, with the reference of that region: /pfs/out/PERSON/REGION.vcf.gz.
set -euo pipefail

# paths of this datum's files, and what was in the parentheses of the globs, from pfs
bam=${reads:?} fasta=${reference:?} region=${PACH_DATUM_reads_JOIN_ON:?}

out=/pfs/out/$(basename "$(dirname "$bam")")
mkdir "$out"
# indexes lie beside their files
ln -s "$bam" /tmp/reads.bam
ln -s "$fasta" /tmp/reference.fa
samtools index /tmp/reads.bam
# reads that reach out of the region are there, but what is found there is the neighbour's
bcftools mpileup --no-version -O u -f /tmp/reference.fa -r "${region%%-*}:${region#*-}" /tmp/reads.bam |
    bcftools call --no-version -m -v -O z -o "$out/$region.vcf.gz"
