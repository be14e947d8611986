"""Annotation files as memory-mapped tables, built once and shared by all processes."""
