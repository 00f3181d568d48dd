"""Trained models: their descriptions and files."""
