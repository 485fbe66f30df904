"""Makes `python -m imagereward` the same as the `imagereward` command."""

from imagereward.cli import main

main()
