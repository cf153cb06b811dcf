"""Reading runs, comparing them, and showing what they came to; nothing here imports torch."""
