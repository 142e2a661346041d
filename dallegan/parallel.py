"""One step over many devices: `jit` over a ("data", "fsdp") mesh, or `pmap`. Same numbers either way.

Each device makes the gradients of its own rows; then they are averaged, once each. This is written out (`shard_map`) and not left to XLA's partitioner,
which reduced a weight's gradient once for each use of it, moved pictures between devices, and split feature maps as the weights are (benchmarks/LOG.md).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dallegan.config import Config
from dallegan.errors import UserError
from dallegan.models.gan import Params
from dallegan.state import GanState
from dallegan.steps import TWICE, Batch, Gradients, Metrics, Step, penalty_stride, rows_fit

MESH = "data", "fsdp"  # the axes of the mesh
AXIS = "data"  # pmap's
Devices = Sequence[Any]  # of jax.Device
CPU_OPTIONS: dict[str, Any] = {
    # XLA's YNNPACK fusions run the weight gradient of a 3×3 convolution at half the speed of its older kernels, while they win for plain matrix products
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    # compiled a tenth sooner, and as fast: benchmarks/LOG.md, for both
    "xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
}
# for programs that run a few hundred times at most: half optimized by LLVM, fusions by XLA's older emitter where it still has it. As fast where nearly all is
# convolutions and products, and compiled in two thirds of the time (benchmarks/LOG.md)
QUICK_OPTIONS: dict[str, Any] = CPU_OPTIONS | {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}


@functools.cache
def fast_options() -> dict[str, Any]:
    """Those of CPU_OPTIONS that this version of XLA knows, where this is a CPU, else nothing."""
    return {name: value for name, value in CPU_OPTIONS.items() if _is_known(name, value)}


@functools.cache
def quick_options() -> dict[str, Any]:
    """Likewise, those of QUICK_OPTIONS."""
    return {name: value for name, value in QUICK_OPTIONS.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options={name: value})
    except Exception:  # the type of an unknown option's exception is not stable
        return False
    return True


@functools.cache
def compiled(function: Callable[..., Any], static: tuple[int, ...] = ()) -> Callable[..., Any]:
    """`function` under jit, for a few hundred calls forward."""
    return jax.jit(function, static_argnums=static, compiler_options=quick_options())


def compute_dtype(config: Config) -> Any:
    """The dtype of the computation; `auto` is bfloat16 on GPU and TPU, float32 on CPU."""
    name = config.parallel.precision
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def make_mesh(config: Config, devices: Devices) -> Mesh:
    """A (data, fsdp) mesh over the devices."""
    fsdp = config.parallel.fsdp
    return jax.make_mesh((len(devices) // fsdp, fsdp), MESH, axis_types=(AxisType.Auto,) * 2, devices=devices)


def check_devices(config: Config, devices: Devices | None = None) -> None:
    """Raises UserError where batch or parameters cannot be spread evenly over the devices (default: all)."""
    n = len(devices or jax.devices())
    if config.parallel.fsdp < 1 or n % config.parallel.fsdp:
        raise UserError(f"--parallel.fsdp {config.parallel.fsdp}: must divide the {n} devices")
    if not rows_fit(config, n):
        most = config.batch + n * config.parallel.accumulate * penalty_stride(config) * TWICE  # between batch and this, one fits
        fits = [batch for batch in range(n, most + 1, n) if rows_fit(dataclasses.replace(config, batch=batch), n)]
        near = [*[x for x in fits if x < config.batch][-1:], *[x for x in fits if x > config.batch][:1]]
        why = f"{n} device{'s' * (n > 1)}, parts, and the shares that are penalized or drawn twice"
        raise UserError(f"--batch {config.batch}: does not divide evenly ({why}): {' or '.join(map(str, near))}")
    if config.parallel.strategy == "pmap" and config.parallel.fsdp != 1:
        raise UserError("--parallel.fsdp needs --parallel.strategy jit: pmap keeps a whole copy of the parameters on each device")


def state_shardings(mesh: Mesh, abstract: Any) -> Any:
    """Each array split over `fsdp` along its largest axis that divides evenly, else replicated."""
    parts = mesh.shape["fsdp"]

    def one(x: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, n in enumerate(x.shape) if parts > 1 and n % parts == 0]
        spec: list[str | None] = [None] * len(x.shape)
        if axes:
            spec[max(axes, key=lambda i: x.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(one, abstract)


def spread_over(mesh: Mesh, shardings: Any) -> Callable[[Gradients], Gradients]:
    """Gradients of the global batch over a mesh. What is split over `fsdp` is gathered once, stays whole for the step, and its gradients are scattered:
    between steps as ZeRO stage 3 (arXiv 1910.02054), within one as stage 2 ("SHARD_GRAD_OP" of FSDP, arXiv 2304.11277)."""
    specs, axes = jax.tree.map(lambda x: x.spec, shardings), tuple(name for name in MESH if mesh.shape[name] > 1)
    split = lambda spec: spec.index("fsdp") if "fsdp" in spec else None  # the dimension that is

    def gather(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        return x if (i := split(spec)) is None else jax.lax.all_gather(x, "fsdp", axis=i, tiled=True)

    def scatter(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        if (i := split(spec)) is None:
            return jax.lax.pmean(x, axes)
        part = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=i, tiled=True) / mesh.shape["fsdp"]
        return jax.lax.pmean(part, "data") if "data" in axes else part

    def spread(gradients: Gradients) -> Gradients:
        def local(params: Params, *args: Any) -> tuple[Params, Metrics]:
            grads, metrics = gradients(jax.tree.map(gather, params, specs), *args)
            return jax.tree.map(scatter, grads, specs), jax.lax.pmean(metrics, axes)

        one = PartitionSpec()
        # check_vma=False: gradients of a device's own rows, as under pmap; with it, JAX itself would sum those of replicated parameters
        return jax.shard_map(local, mesh=mesh, in_specs=(specs, PartitionSpec(MESH), one, one), out_specs=(specs, one), check_vma=False)

    return spread


class Runner:
    """Places states and batches on the devices and runs the compiled step. `step` donates the state it is given."""

    def __init__(self, config: Config, init: Callable[[], GanState], step: Callable[..., Step], devices: Devices | None = None) -> None:
        """`init` makes a state, `step` the step function, given `axis` and `spread` of `make_train_step`; `devices` defaults to all."""
        devices = devices or jax.devices()
        check_devices(config, devices)
        self.pmap = config.parallel.strategy == "pmap"
        self.devices = sum(d.process_index == jax.process_index() for d in devices)
        self.mesh = make_mesh(config, devices)
        self.abstract = jax.eval_shape(init)
        self.state_shardings = state_shardings(self.mesh, self.abstract)
        flat = Mesh(np.asarray(devices), (AXIS,))
        self.per_device, self.on_each = NamedSharding(flat, PartitionSpec(AXIS)), NamedSharding(flat, PartitionSpec())  # pmap's: a leading device axis
        self.batch_sharding = NamedSharding(self.mesh, PartitionSpec(MESH))
        self._init, self._step = init, step
        self._devices = devices
        self._compiled: Any = None

    @property
    def global_abstract(self) -> GanState:
        """Shapes and shardings of the state in the global view: what a checkpoint is restored to."""
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), self.abstract, self.state_shardings)

    def init(self) -> GanState:
        """A fresh state, made in its place on the devices."""
        # it runs once, so LLVM optimizes nothing of it
        options = quick_options() | {"xla_backend_optimization_level": 0} if self._devices[0].platform == "cpu" else {}
        state = jax.jit(self._init, out_shardings=self.state_shardings, compiler_options=options)()
        return self.place(state) if self.pmap else state

    def place(self, state: GanState) -> GanState:
        """A state in the global view, onto the devices."""
        if self.pmap:
            n = len(self.on_each.device_set)
            spread = lambda x: jax.make_array_from_callback((n, *x.shape), self.per_device, lambda _: x[None])
            return jax.tree.map(lambda x: spread(np.asarray(x)), state)
        return jax.device_put(state, self.state_shardings)

    def view(self, state: GanState) -> GanState:
        """The state in the global view, whichever the strategy: for checkpoints."""
        if not self.pmap:
            return state
        return jax.tree.map(lambda x: jax.make_array_from_single_device_arrays(x.shape[1:], self.on_each, [s.data[0] for s in x.addressable_shards]), state)

    def local(self, tree: Any) -> Any:
        """A part of a state in the global view, whole on one of this process's devices: for sampling. All processes must call it."""
        whole = jax.tree.map(lambda x: NamedSharding(x.sharding.mesh, PartitionSpec()), tree)
        return jax.tree.map(lambda x: x.addressable_data(0), jax.device_put(tree, whole))

    def put(self, batch: dict[str, Any]) -> Batch:
        """This process's rows of a global batch, onto the devices."""
        if self.pmap:
            batch = {k: v.reshape(self.devices, -1, *v.shape[1:]) for k, v in batch.items()}
        return {k: jax.make_array_from_process_local_data(self.per_device if self.pmap else self.batch_sharding, v) for k, v in batch.items()}

    def compile(self, state: GanState, batch: Batch) -> None:
        """Compiles the step ahead of its first call."""
        if self._compiled is not None:
            return
        if self.pmap:
            mapped = jax.pmap(self._step(AXIS), axis_name=AXIS, donate_argnums=0, devices=self._devices)
        else:
            step = self._step(MESH, spread_over(self.mesh, self.state_shardings.params)) if self.mesh.size > 1 else self._step()
            mapped = jax.jit(
                step, donate_argnums=0,
                in_shardings=(self.state_shardings, self.batch_sharding), out_shardings=(self.state_shardings, None),
            )  # fmt: skip
        self._compiled = mapped.lower(state, batch).compile(compiler_options=fast_options() if self._devices[0].platform == "cpu" else {})

    def step(self, state: GanState, batch: Batch) -> tuple[GanState, Metrics]:
        """One train step."""
        self.compile(state, batch)
        state, metrics = self._compiled(state, batch)
        return state, jax.tree.map(lambda x: x.addressable_shards[0].data[0], metrics) if self.pmap else metrics

    def state_bytes(self) -> int:
        """Bytes of the state on each device."""
        shard = lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
        return sum(jax.tree.leaves(jax.tree.map(shard, self.abstract, self.state_shardings)))

    def text(self) -> str:
        """The compiled program, as HLO."""
        return self._compiled.as_text()

    def flops(self) -> float:
        """XLA's count of one device's floating-point operations in one step, once compiled; of a loop, such as over `parallel.accumulate`, of one turn."""
        return float(self._compiled.cost_analysis()["flops"])

    def memory(self) -> int:
        """Bytes on each device that XLA plans for one step: state, batch and scratch, once compiled."""
        plan = self._compiled.memory_analysis()
        return plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
