"""The `pfs` command: parse, one library call, print."""
