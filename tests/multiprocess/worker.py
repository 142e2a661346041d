"""One process of a run: python worker.py CONFIG.json [FAULT STEP]; a fault strikes when the batch of that step is asked for."""

import itertools
import os
import pathlib
import sys
import time

from dallegan import config, loop
from dallegan.io.cli import run
from dallegan.run import processes as runtime


def main():
    settings = config.from_json(pathlib.Path(sys.argv[1]).read_text())
    if len(sys.argv) > 2:
        fault, at, batches = sys.argv[2], int(sys.argv[3]), loop.make_batches

        def faulty(dataset, config, start):
            for step, batch in zip(itertools.count(start), batches(dataset, config, start), strict=False):
                if step == at:
                    {"hang": lambda: time.sleep(1000), "kill": lambda: os.kill(os.getpid(), 9), "term": lambda: os.kill(os.getpid(), 15)}[fault]()
                yield batch

        loop.make_batches = faulty
    runtime.join(settings.parallel)
    loop.train(settings)


sys.exit(run(main))
