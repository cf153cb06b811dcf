"""Scores of a trained family or of a folder of images: what is measured, and over which network."""
