"""Editing tasks: a file each, with one function of the file's name (`aigc/editing/tasks.py` says which kind)."""
