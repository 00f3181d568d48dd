"""Built-in data sets, and how they are written."""
