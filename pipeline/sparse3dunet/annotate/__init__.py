"""Annotation of scans in other programs, with densify behind them."""
