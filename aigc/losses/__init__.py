"""Losses that several families share."""
