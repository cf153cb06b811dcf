"""aigc: train, measure, compare and use image generators."""

__version__ = "0.1.0"
