"""Annotation of scans with densify behind it: a page in the browser, and an app for MONAI Label."""
