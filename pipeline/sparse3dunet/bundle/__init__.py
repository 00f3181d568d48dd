"""The bundle's configs as commands, and models packaged as bundles of their own."""
