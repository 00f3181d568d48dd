"""Annotation of one scan in the browser: a page, and the server on this machine that keeps what is drawn."""
