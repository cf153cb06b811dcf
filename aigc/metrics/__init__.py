"""What scores are made of: feature networks, metrics over them, and the items that are scored."""
