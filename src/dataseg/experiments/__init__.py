"""Suites of experiments: their runs, and the report on them."""
