"""Generates images of captions with a trained model; the same as `dallegan sample`.

python sample.py PROMPT... [--model NAME|DIR|URL] [--n N] [--seed S] [--truncation T] [--best-of K] [--out D]
"""

import sys

from dallegan.__main__ import start

if __name__ == "__main__":
    sys.exit(start("sample"))
