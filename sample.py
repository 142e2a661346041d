"""Draw captions: python sample.py PROMPT... [--model NAME|DIR] [--n N] [--seed S] [--out DIR]   (--help lists every flag)"""

import sys

from dallegan.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
