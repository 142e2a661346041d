"""Trains a preset, or resumes it; the same as `dallegan train`.

python train.py [PRESET] [--workdir DIR] [--steps N] [--data.source SRC] [--FIELD VALUE]...
"""

import sys

from dallegan.__main__ import start

if __name__ == "__main__":
    sys.exit(start("train"))
