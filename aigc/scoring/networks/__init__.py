"""Feature networks that scores are computed over."""
