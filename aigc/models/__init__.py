"""Families of generators, one a file."""
