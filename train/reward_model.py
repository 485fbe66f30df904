"""Train a reward model from rankings: `python train/reward_model.py RECIPE key=value …`.

On several devices: `accelerate launch train/reward_model.py …` or `torchrun …`. From the wheel, without
this file: `imagereward tune …`.
"""

import sys

from imagereward.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "tune")
    main()
