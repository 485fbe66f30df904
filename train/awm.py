"""Fine-tune an image generator by advantage-weighted matching, with any reward.

`accelerate launch train/awm.py RECIPE key=value …`. From the wheel, without this file: `imagereward tune …`.
"""

import sys

from imagereward.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "tune")
    main()
