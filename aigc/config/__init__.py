"""The configuration: its schema, the words that change it, what it may build, and what a stranger's may do."""
