"""Scores of a trained family or of a folder of images, with intervals, floors and protocol."""
