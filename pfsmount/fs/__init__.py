"""The live mount: a FUSE filesystem over worktrees and commits."""
