"""The run folder: which run owns it, and which process works in it."""
