#!/usr/bin/env bash
# Puts the regions of each person one after another, and then all people side by side: /pfs/out/variants.vcf.
set -euo pipefail

for directory in /pfs/calls/*; do
    whole=/tmp/$(basename "$directory").vcf.gz
    find "$directory" -name '*.vcf.gz' | sort -V >/tmp/regions
    bcftools concat --no-version -f /tmp/regions -O z -o "$whole"
    bcftools index "$whole"
done
bcftools merge --no-version -o /pfs/out/variants.vcf /tmp/*.vcf.gz
