"""`python -m sandfork`."""

from sandfork.cli import main

main()
