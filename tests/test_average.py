import dataclasses
import pathlib
import runpy

import jax
import numpy as np
import pytest

import dallegan
from dallegan.errors import UserError

SCRIPT = pathlib.Path(__file__).parent.parent / "recipes" / "average.py"


@pytest.fixture
def average(model, tmp_path, monkeypatch):
    """Calls the script beside two models, ./one and ./two, whose parameters are three times as large."""
    monkeypatch.chdir(tmp_path)
    model.save("one")
    dataclasses.replace(model, params=jax.tree.map(lambda x: 3 * x, model.params)).save("two")

    def call(*args):
        monkeypatch.setattr("sys.argv", ["average.py", *args, "--out", "out"])
        runpy.run_path(str(SCRIPT))["main"]()
        return dallegan.load("out")

    return call


def test_generators_are_averaged_and_the_last_discriminator_is_kept(average, model):
    made = average("one", "two", "--weights", "0.25", "0.75")
    for player, times in (("generator", 2.5), ("discriminator", 3.0)):
        close = lambda a, b, n=times: np.testing.assert_allclose(a, n * b, rtol=0.02, atol=1e-6)
        jax.tree.map(close, made.params[player], model.params[player])


def test_what_cannot_be_averaged_is_refused(average):
    with pytest.raises(UserError, match="give one for each of 2 models, with a sum of 1"):
        average("one", "two", "--weights", "0.25", "0.25")
    with pytest.raises(UserError, match="storybook-32: has another network or tokenizer than one"):
        average("storybook-32", "one", "--weights", "0.5", "0.5")
    assert not pathlib.Path("out").exists()
