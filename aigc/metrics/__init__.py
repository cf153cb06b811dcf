"""The parts of scores: feature networks, metrics over them, and the items that are scored."""
