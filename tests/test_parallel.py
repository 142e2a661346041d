import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, tiny

from dallegan.config import load_preset
from dallegan.errors import UserError
from dallegan.parallel import check_devices

FAST, SLOW = ["jit 8", "pmap 8", "fsdp 2x4"], ["jit 2", "jit 4", "packed 8", "parts 2"]
WAYS = [*FAST, *(pytest.param(way, marks=pytest.mark.slow) for way in SLOW)]


@pytest.fixture(scope="module")
def report(request):
    ways = ["jit 1", *FAST, *(["packed 1", "parts 1", *SLOW] if request.config.getoption("--slow") else [])]
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "devices.py", *ways],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("way", WAYS)
def test_same_numbers_on_one_device_and_on_more(report, way):
    assert report[way]["params"] < 1e-5
    assert report[way]["losses"] < 1e-4


@pytest.mark.parametrize("way", WAYS[:-1])
def test_each_parameter_and_each_gradient_travels_once(report, way):
    given, expected, rows, hidden, grams = (
        report[way][name] for name in ("collectives", "expected", "rows", "hidden", "grams")
    )
    assert set(given) <= {"all-reduce", "all-gather", "reduce-scatter"}  # no picture and no feature map moves
    spares = {
        "all-reduce": 500 + 2 * grams,
        "all-gather": rows + 4 * hidden,
        "reduce-scatter": rows,
    }  # 500: the metrics, the norms
    for kind, spare in spares.items():
        assert expected[kind] <= given.get(kind, 0) <= expected[kind] + spare, kind


def test_one_device_exchanges_nothing(report):
    assert report["jit 1"]["collectives"] == {}


def test_fsdp_really_shards(report):
    assert report["fsdp 2x4"]["sharded"] > 20
    assert report["jit 8"]["sharded"] == 0


def test_uneven_batches_are_refused():
    devices = [None] * 8
    with pytest.raises(
        UserError, match=r"--batch 12: does not split evenly over 8 devices, .*; take 8 or 16"
    ):
        check_devices(tiny(batch=12), devices)
    with pytest.raises(UserError, match=r"--parallel.fsdp 3: must divide the 8 devices"):
        check_devices(tiny(batch=16, parallel__fsdp=3), devices)
    with pytest.raises(UserError, match=r"needs --parallel.strategy jit"):
        check_devices(tiny(batch=16, parallel__fsdp=2, parallel__strategy="pmap"), devices)
    with pytest.raises(UserError, match=r"--batch 24: .*; take 16 or 32"):
        check_devices(tiny(batch=24, loss__penalty_share=0.125), devices)
    check_devices(tiny(batch=16), devices)
    for count in (1, 2, 4, 8, 16, 32):
        check_devices(load_preset("quickstart"), [None] * count)
