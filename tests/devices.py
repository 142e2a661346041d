"""Runs three steps in several ways on eight simulated devices, for test_parallel.py.

Arguments: names of some of WAYS. Prints as JSON how far each way is from one device, and what its devices
exchange.
"""

import json
import sys

import flax.traverse_util
import jax
import numpy as np
from conftest import ROOT, tiny

from dallegan import optim
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.models.gan import Gan
from dallegan.optim import make_optimizer
from dallegan.parallel import make_runner
from dallegan.state import init_state
from dallegan.warmstart import start_from

optim.EPSILON = 1e-2
sys.path.insert(0, str(ROOT / "benchmarks"))
import hlo

WHOLE, LAYOUT = 256, 8 * 8 * 3  # floats: of a picture's features, of its layout
# Now and then an input of a leaky ReLU, or of the diversity term's |x|, lies so near zero that rounding
# decides its side; from there on a run goes its own way. So several runs are made, and the median is
# judged: what a device gets wrong, it gets wrong in all.
RUNS = 5


def networks(config):
    return Gan(config.text, config.model, config.data.size, packing=bool(config.loss.packing))


def fresh_state(config):
    """On the host, since a step donates its state."""
    gan = networks(config)
    make = lambda: init_state(gan, make_optimizer(gan, config.optim, config.steps), config.seed)
    return jax.tree.map(np.asarray, jax.jit(make)())


def run(config, devices):
    gan, fresh = networks(config), FRESH[config.loss.packing]
    adam = make_optimizer(gan, config.optim, config.steps)
    runner = make_runner(gan, adam, config, devices)
    source = make_source(config)
    batches = make_batches(make_dataset(source, make_tokenizer(source, config), config), config, 0)
    leaves = lambda state: [np.array(x) for x in jax.tree.leaves(runner.view(state).params)]
    if config.parallel.fsdp == 4:  # made in their place, shard by shard
        for mine, whole in zip(leaves(runner.init()), leaves(fresh), strict=True):
            np.testing.assert_allclose(mine, whole, atol=1e-6)
    params, losses = [], []
    for start in STARTS:
        state = runner.place(start_from(fresh, start))  # as a run with `init_from`
        before = leaves(state)
        for _ in range(3):
            state, metrics = runner.step(state, runner.put(next(batches)))
            losses.append([float(metrics[k]) for k in ("d_loss", "g_loss", "r1", "match_gap")])
        params.append(leaves(state))
        moved = max(float(np.abs(a - b).max()) for a, b in zip(before, params[-1], strict=True))
        assert moved > 1e-3, "a comparison of what has not moved proves nothing"
    sharded = [x for x in jax.tree.leaves(state.params) if not x.sharding.is_fully_replicated]
    # what the contrastive term compares (features of real and drawn pictures, own and false captions of
    # both readers, their tokens), and the diversity term
    rows = 4 * config.batch * (2 * WHOLE + 4 * config.text.width + 2 * config.text.length + LAYOUT)
    # what Muon needs of the kernels that lie on several devices: they, and their Gram matrices
    flat = flax.traverse_util.flatten_dict(state.params)
    hidden = [x for path, x in flat.items() if path in gan.hidden and not x.sharding.is_fully_replicated]
    about = {
        "hidden": sum(x.size for x in hidden),
        "grams": sum(min(x.size // x.shape[-1], x.shape[-1]) ** 2 for x in hidden),
    }
    found = about | {
        "sharded": len(sharded),
        "collectives": hlo.collectives(runner.executable.as_text()),
        "expected": hlo.expected(runner),
        "rows": rows,
    }
    return params, np.array(losses).reshape(RUNS, -1), found


# Captions are cut short, for the GRU compiles many times here. Adam divides a gradient by its own size:
# with the usual epsilon, one that is nothing but rounding would be a whole step (the attention behind its
# LayerScale of 1e-5 has such). With an epsilon above the rounding, equal gradients give equal parameters.
# One picture in eight is penalized, so that on eight devices of four pictures every second has none.
SETTINGS = {
    "batch": 32,
    "loss__penalty_share": 0.125,
    "optim__muon": 1.0,
    "loss__diversity": 2.0,
    "text__length": 6,
    "optim__lr": (1e-2, 1e-2),
    "optim__lr_d": (1e-2, 1e-2),
}
PACKED = SETTINGS | {"loss__diversity": 0.0, "loss__packing": 1.0, "batch": 64}
BASE = tiny(**SETTINGS)
WAYS = {
    "jit 1": (BASE, 1),
    "jit 2": (BASE, 2),
    "jit 4": (BASE, 4),
    "jit 8": (BASE, 8),
    "pmap 8": (tiny(**SETTINGS, parallel__strategy="pmap"), 8),
    "fsdp 2x4": (tiny(**SETTINGS, parallel__fsdp=4), 8),
    "packed 1": (tiny(**PACKED), 1),
    "packed 8": (tiny(**PACKED), 8),
    "parts 1": (tiny(**PACKED, parallel__accumulate=2), 1),
    "parts 2": (tiny(**PACKED, parallel__accumulate=2, parallel__fsdp=2), 2),
}

assert jax.device_count() == 8
FRESH = {config.loss.packing: fresh_state(config) for config in (BASE, tiny(**PACKED))}
STARTS = [jax.jit(networks(BASE).init)(jax.random.key(n)) for n in range(RUNS)]
found = {name: run(config, jax.devices()[:n]) for name, (config, n) in WAYS.items() if name in sys.argv}
report = {}
for name, (params, other, about) in found.items():
    kind = name.split()[0]
    reference, losses, _ = found[f"{kind} 1" if kind in ("packed", "parts") else "jit 1"]
    apart = [
        max(float(np.abs(a - b).max()) for a, b in zip(*pair, strict=True))
        for pair in zip(reference, params, strict=True)
    ]
    report[name] = {
        "params": np.median(apart),
        "losses": np.median((np.abs(other - losses) / (1e-3 + np.abs(losses))).max(1)),
    } | about
json.dump(report, sys.stdout)
