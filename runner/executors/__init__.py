"""What runs a command over the files of one datum. `base` is the interface; the other modules are implementations.

Nothing is imported here: a worker process starts through this package and must be running within a few milliseconds.
"""
