"""The bundle's configs as commands, and packaging of models as bundles of their own."""
