"""python -m vhostfast: the command line without its script."""

from vhostfast.cli.main import main

main()
