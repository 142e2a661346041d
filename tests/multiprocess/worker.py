"""One process of a run: python worker.py CONFIG.json HANG [FAULT STEP].

The watchdog waits HANG seconds. The fault strikes when the batch of that step is taken.
"""

import itertools
import os
import pathlib
import sys
import time

from dallegan import config, loop
from dallegan.io.cli import run
from dallegan.run import processes

FAULTS = {
    "hang": lambda: time.sleep(1000),
    "kill": lambda: os.kill(os.getpid(), 9),
    "term": lambda: os.kill(os.getpid(), 15),
}


def main():
    settings = config.from_json(pathlib.Path(sys.argv[1]).read_text())
    processes.HANG = int(sys.argv[2])
    if len(sys.argv) > 3:
        fault, at, batches = FAULTS[sys.argv[3]], int(sys.argv[4]), loop.make_batches

        def faulty(dataset, config, start):
            for step, batch in zip(itertools.count(start), batches(dataset, config, start), strict=False):
                if step == at:
                    fault()
                yield batch

        loop.make_batches = faulty
    processes.join(settings.parallel)
    loop.train(settings)


sys.exit(run(main))
