"""Bytes to arrays and back: one implementation each."""
