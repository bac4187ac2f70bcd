"""Bytes by hash: segments, the index of where they are, and the store that joins them."""
