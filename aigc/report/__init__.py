"""Reads runs, compares them, and shows their results; nothing here imports torch."""
