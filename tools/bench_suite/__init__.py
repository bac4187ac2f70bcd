"""What pfs costs: rows of a table, each measured against its yardstick in the same run.

A new row is one decorated function in a `*_rows` module; `row.py` says what it returns.
"""
