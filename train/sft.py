"""Train an image generator on (prompt, image) pairs, or on its own best images.

`accelerate launch train/sft.py RECIPE key=value …`. From the wheel, without this file: `imagereward tune …`.
"""

import sys

from imagereward.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "tune")
    main()
