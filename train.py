"""Train a preset: python train.py [PRESET] [--workdir DIR] [--steps N] [--FIELD VALUE]...   (--help lists every field)"""

import sys

from dallegan.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
