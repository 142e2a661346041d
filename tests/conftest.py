import dataclasses
import os
import pathlib
import signal

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

# every call of these is checked against its annotations, in all tests
install_import_hook(
    [f"dallegan.{name}" for name in ("losses", "evaluation.metrics", "augment", "sampling", "models.gan")],
    "beartype.beartype",
)

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig
from dallegan.data.pipeline import make_dataset, make_source, make_tokenizer
from dallegan.data.storybook.scenes import Storybook
from dallegan.optim import make_optimizer
from dallegan.run.checkpoint import load_state
from dallegan.sampling import Model, load, make_gan
from dallegan.state import digest, init_state
from dallegan.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).parent.parent

# What compiles small programs soonest, in child processes too: the older emitter of fused loops, as long as
# XLA has one, takes half the time of the newer.
SOONEST = (
    "--xla_cpu_use_fusion_emitters=false"
    if jax.__version_info__ < (0, 11)
    else "--xla_cpu_opt_preset=FAST_COMPILE"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {SOONEST}"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="minutes long: --slow"))


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Makes Ctrl-C work, also for child processes; a shell ignores it for what runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def compile_quickly(tmp_path_factory):
    """Compiles without LLVM's optimizations, and each program once for all tests, since compiling is slow."""
    folder = str(tmp_path_factory.mktemp("xla"))
    os.environ["XDG_CACHE_HOME"] = str(
        tmp_path_factory.mktemp("cache")
    )  # features of real pictures, from this suite alone
    for name, value in {"jax_compilation_cache_dir": folder, "jax_disable_most_optimizations": True}.items():
        os.environ[name.upper()] = str(value)  # for child processes
        jax.config.update(name, value)


TINY = Config(
    workdir="unset",
    steps=6,
    batch=8,
    data=DataConfig(size=16, threads=1),
    text=TextConfig(encoder="rnn", vocab=600, length=14, width=16, layers=1),
    model=ModelConfig(
        noise=8, style=16, width=16, patch=2, attention=(4,), critic_widths=(16, 16), critic_blocks=(0, 1)
    ),
    loss=LossConfig(penalty_share=0.5),
    optim=OptimConfig(lr=(2e-3, 2e-3), lr_d=(2e-3, 2e-3), muon=1.0, fan=32),
    log=LogConfig(metrics=16, samples=24, checkpoint=16),
)


# much the same as flags, at 32 pixels, which the judge can read
TINY_FLAGS = """
    --steps 2 --batch 8 --data.size 32 --data.threads 1 --text.encoder rnn --text.vocab 600 --text.length 20
    --text.width 16 --text.layers 1 --model.noise 8 --model.style 16 --model.width 16 --model.blocks 1
    --model.patch 4 --model.attention 4 --model.critic-patch 4 --model.critic-widths 16 16
    --model.critic-blocks 0 1 --log.metrics 8 --log.samples 8 --log.evaluate 8 --log.checkpoint 8
""".split()  # noqa: SIM905


def tiny(**changes) -> Config:
    """The smallest run that has every part; `section__field=value` changes a setting."""
    config = TINY
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config = dataclasses.replace(
            config,
            **{section: dataclasses.replace(getattr(config, section), **{field: value}) if field else value},
        )
    return config


class Jitted:
    """A Gan whose functions are compiled: op by op they take seconds."""

    def __init__(self, gan):
        self.gan = gan

    def __getattr__(self, name):
        value = getattr(self.gan, name)
        return jax.jit(value) if callable(value) else value


def final(workdir):
    """(step, sha256) of the whole state in a run's newest checkpoint."""
    model = load(workdir)
    optimizer = make_optimizer(model.gan, model.config.optim, model.config.steps)
    state = load_state(workdir, jax.eval_shape(lambda: init_state(model.gan, optimizer, model.config.seed)))
    return int(state.step), digest(state)


def faulty(path):
    """Makes a file that opens and is not read: Linux answers EIO at the first bytes of a process's memory."""
    if not pathlib.Path("/proc/self/mem").exists():
        pytest.skip("no file that cannot be read")
    path.symlink_to("/proc/self/mem")


def assert_processes_agree(config):
    """One, two and four processes make the same global batches of a source."""
    tokenizer = make_tokenizer(make_source(config), config)
    rows = lambda process, count: make_dataset(make_source(config), tokenizer, config, process, count)
    for count in (2, 4):
        pieces = [rows(process, count) for process in range(count)]
        for step in range(3):
            for key, whole in rows(0, 1)[step].items():
                np.testing.assert_array_equal(np.concatenate([piece[step][key] for piece in pieces]), whole)


@pytest.fixture(scope="session")
def model():
    """Untrained, of 16 pixels."""
    config = tiny(text__length=20, model__shrink=(2.0, 1.0))
    tokenizer = Tokenizer.train(Storybook(16).captions(2000), 600, config.text.length)
    gan = make_gan(config, tokenizer.size)
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape),
        jax.jit(gan.init)(jax.random.key(0)),
    )
    return Model(gan, params, tokenizer, config)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The directory of the smallest run, trained to its end. Leave it as it is."""
    from dallegan.loop import train

    workdir = tmp_path_factory.mktemp("run") / "done"
    train(tiny(workdir=str(workdir)))
    return workdir
