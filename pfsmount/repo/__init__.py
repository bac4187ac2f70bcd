"""Commits, refs, history and worktrees over trees and objects."""
