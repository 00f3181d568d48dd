"""``python -m sparse3dunet``: the command line."""

from sparse3dunet.cli.main import main

main()
