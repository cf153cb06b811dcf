"""Families of generators, one per file."""
