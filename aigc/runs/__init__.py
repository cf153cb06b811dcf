"""The run folder: whose it is, and who works in it."""
