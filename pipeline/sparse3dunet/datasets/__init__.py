"""Data that are built in: a brain; and how such are written."""
