"""Data that are built in, or made by chance: a brain, and tubules."""
