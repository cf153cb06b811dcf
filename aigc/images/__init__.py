"""Pictures in and out of files: what this program writes, and how it is recognized."""
