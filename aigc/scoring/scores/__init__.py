"""The scores, one file each."""
