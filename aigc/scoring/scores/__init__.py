"""The scores, one file each; those over features register themselves where they are imported."""
