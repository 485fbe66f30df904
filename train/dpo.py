"""Fine-tune an image generator on pairs of a better and a worse image, stored or drawn.

`accelerate launch train/dpo.py RECIPE key=value …`. From the wheel, without this file: `imagereward tune …`.
"""

import sys

from imagereward.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "tune")
    main()
