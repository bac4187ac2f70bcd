"""`pfs fsck`."""
