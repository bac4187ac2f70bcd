"""pfs: a versioned filesystem that you mount."""

__version__ = "0.1.0"
