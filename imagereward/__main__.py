"""`python -m imagereward` is the `imagereward` command."""

from imagereward.cli import main

main()
