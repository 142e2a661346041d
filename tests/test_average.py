import dataclasses
import pathlib
import runpy

import jax
import numpy as np
import pytest

import dallegan
from dallegan.errors import UserError

SCRIPT = pathlib.Path(__file__).parent.parent / "benchmarks" / "average.py"


@pytest.fixture
def average(model, tmp_path, monkeypatch):
    """The script, given two models in ./one and ./two, the second thrice the first."""
    monkeypatch.chdir(tmp_path)
    model.save("one")
    dataclasses.replace(model, params=jax.tree.map(lambda x: 3 * x, model.params)).save("two")

    def call(*args):
        monkeypatch.setattr("sys.argv", ["average.py", *args, "--out", "out"])
        runpy.run_path(str(SCRIPT))["main"]()
        return dallegan.load("out")

    return call


def test_generators_are_averaged_and_the_last_discriminator_is_kept(average, model):
    made = average("one", "two", "--shares", "0.25", "0.75")
    for player, times in (("generator", 2.5), ("discriminator", 3.0)):
        jax.tree.map(
            lambda a, b, n=times: np.testing.assert_allclose(a, n * b, rtol=0.02, atol=1e-6),
            made.params[player],
            model.params[player],
        )


def test_what_cannot_be_averaged_is_refused(average):
    with pytest.raises(UserError, match="one for each of 2 models, 1 in all"):
        average("one", "two", "--shares", "0.25", "0.25")
    with pytest.raises(UserError, match="storybook-32: another network or tokenizer than one"):
        average("storybook-32", "one", "--shares", "0.5", "0.5")
    assert not pathlib.Path("out").exists()
