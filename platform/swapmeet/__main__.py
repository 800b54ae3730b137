"""`python -m swapmeet` is the command line."""

from swapmeet.cli import main

main()
