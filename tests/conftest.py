"""Makes tests/tiny.py importable as `tiny` from every test."""
