"""``python -m sparse3dunet``: the command line."""

from sparse3dunet.cli import main

main()
