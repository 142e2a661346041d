"""Train a preset: python train.py [PRESET] [--workdir DIR] [--steps N] [--FIELD VALUE]...   (--help lists every field)"""

import sys

from dallegan.train import command

if __name__ == "__main__":
    sys.exit(command())
