"""Files of our own: how they are written, kept, named and recognized."""
