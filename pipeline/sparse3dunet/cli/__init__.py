"""The command line: `sparse3dunet COMMAND`."""
