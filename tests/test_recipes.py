"""The recipes run: the chain to storybook-64 with a few steps a stage, and the help of each script."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT

from dallegan.config import check
from dallegan.io.cli import parse_config
from dallegan.sampling import load
from dallegan.warmstart import check_origin

RECIPES = ROOT / "recipes"
CHAIN = RECIPES / "storybook-64.sh"


@pytest.mark.parametrize("script", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_each_script_explains_itself(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(RECIPES))
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script.stem).main()
    assert stop.value.code == 0
    assert f"usage: recipes/{script.name}" in capsys.readouterr().out


@pytest.fixture
def commands(tmp_path):
    """Runs the chain with a Python that records its commands, and under which a training run ends at once."""
    fake = tmp_path / "python"
    fake.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
with open({str(tmp_path / "commands")!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "train.py":
    run = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
    run.mkdir(parents=True, exist_ok=True)
    line = {{"step": int(sys.argv[sys.argv.index("--steps") + 1]), "seconds": {{"step": 1.5}}}}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
"""
    )
    fake.chmod(0o755)

    def call(**environment):
        env = os.environ | {"PYTHON": str(fake), "RUNS": str(tmp_path / "runs")} | environment
        done = subprocess.run([CHAIN], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        written = tmp_path / "commands"
        lines = written.read_text().splitlines() if written.exists() else []
        written.unlink(missing_ok=True)
        return done, [json.loads(line) for line in lines]

    return call


def made_model(line, models):
    """The folder that a script writes a model to, and the configuration of this model."""
    script, *words = line
    if script == "recipes/average.py":
        return words[-1], models[words[1]]
    source, folder, *flags = words[1:] if script == "-c" else words
    network = {flag.strip("-"): int(value) for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    return folder, replace(models[source], model=replace(models[source].model, **network))


def test_the_chain_hands_each_model_on(commands):
    """Each network can continue the one before, and the last one is the network that ships."""
    done, lines = commands()
    assert done.returncode == 0, done.stderr
    models = {}
    for line in lines[:-2]:
        if line[0] == "train.py":
            config = parse_config(line[1:])
            check(config)
            if config.init_from:
                check_origin(config.init_from, models[config.init_from], config)
            models[config.workdir] = config
        else:
            folder, models[folder] = made_model(line, models)
    assert sum(line[0] == "train.py" for line in lines) == 16
    shipped = load("storybook-64").config
    assert pathlib.Path(folder).name == "storybook-64"
    assert (models[folder].model, models[folder].text) == (shipped.model, shipped.text)
    assert [line[:3] for line in lines[-2:]] == [
        ["-m", "dallegan", "evaluate"],
        ["recipes/card.py", *lines[-1][1:3]],
    ]
    assert commands()[1] == []  # all stages are complete


def test_a_stage_that_stopped_is_run_again(commands, tmp_path):
    for name, step in (("quickstart", 7), ("storybook32", 5600)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.jsonl").write_text(
            f'{{"step": 1}}\n{{"step": {step}, "x": 2}}\n'
        )
    stopped = tmp_path / "stopped"
    stopped.write_text("#!/bin/sh\n")  # ends without another step
    stopped.chmod(0o755)
    done, _ = commands(PYTHON=str(stopped))
    assert done.returncode == 1
    assert done.stderr == "quickstart stopped at step 7 of 1896; the same command resumes it\n"
    _, lines = commands()
    assert shlex.join(lines[0]).startswith("train.py quickstart --workdir")


@pytest.mark.slow
def test_every_stage_for_a_few_steps(tmp_path):
    env = os.environ | {"RUNS": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run([CHAIN, "--smoke"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    stages = re.findall(r"^== ([\w-]+):", done.stdout, re.MULTILINE)
    assert len(stages) == len(set(stages)) == 24
    card = (tmp_path / "storybook-64" / "README.md").read_text()
    assert "\n| data | `storybook` |\n" in card
    assert "\nalignment  " in card
    assert load(tmp_path / "storybook-64").sample(["a red car"]).shape == (1, 64, 64, 3)
    again = subprocess.run([CHAIN, "--smoke"], env=env, capture_output=True, text=True, check=True)
    assert again.stdout == ""
