"""Trained models: what is known of one, and its files."""
