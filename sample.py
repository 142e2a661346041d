"""Draw captions: python sample.py PROMPT... [--model NAME|DIR] [--n N] [--seed S] [--truncation T] [--best-of K] [--out DIR]   (--help lists every flag)"""

import sys

from dallegan.sample import command

if __name__ == "__main__":
    sys.exit(command())
