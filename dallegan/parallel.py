"""One step over many devices: `jit` over a ("data", "fsdp") mesh, or `pmap`. Same numbers either way.

Each device computes the gradients of its own rows; then they are averaged, once each. This is written out
(`shard_map`) and not left to XLA's partitioner, which reduced a weight's gradient once for each use of it,
moved images between devices, and split feature maps the way weights are split (benchmarks/LOG.md).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dallegan.compile import ONCE, TRAIN, options
from dallegan.config import Config, ParallelConfig
from dallegan.errors import UserError
from dallegan.losses import Adversarial
from dallegan.models.gan import Gan, Params
from dallegan.state import GanState, init_state
from dallegan.steps import DIVERSITY_STRIDE, Batch, Gradients, Metrics, Shard, make_train_step, penalized

MESH = "data", "fsdp"  # axes of the mesh
AXIS = "data"  # axis of pmap
Devices = Sequence[Any]  # of jax.Device


def rows_fit(config: Config, devices: int) -> bool:
    """Returns whether batch, groups, penalized and repeated rows split evenly over devices and parts."""
    loss, parts = config.loss, config.parallel.accumulate
    stride = penalized(loss)[0] if max(loss.gamma) else 1
    groups = config.batch // (devices * parts * loss.group)
    even = groups > 0 and config.batch == groups * devices * parts * loss.group
    if loss.diversity and groups % DIVERSITY_STRIDE:
        return False
    return even and groups * devices % stride == 0 and (groups % stride == 0 or stride % groups == 0)


def check_devices(config: Config, devices: Devices | None = None) -> None:
    """Raises UserError if batch or parameters do not split evenly over the devices (default: all)."""
    n, parallel = len(devices or jax.devices()), config.parallel
    if parallel.fsdp < 1 or n % parallel.fsdp:
        raise UserError(f"--parallel.fsdp {parallel.fsdp}: must divide the {n} devices")
    if not rows_fit(config, n):
        # a batch that fits lies between this one and `most`
        least = n * parallel.accumulate * penalized(config.loss)[0] * config.loss.group
        most = config.batch + least * DIVERSITY_STRIDE
        fits = [x for x in range(n, most + 1, n) if rows_fit(dataclasses.replace(config, batch=x), n)]
        near = [*[x for x in fits if x < config.batch][-1:], *[x for x in fits if x > config.batch][:1]]
        flags = "--parallel.accumulate, --loss.penalty-share, --loss.packing and --loss.diversity"
        why = f"{n} device{'s' * (n > 1)}, {flags}"
        whole = dataclasses.replace(config, loss=dataclasses.replace(config.loss, penalty_share=1.0))
        take = [*map(str, near), *["--loss.penalty-share 1"] * rows_fit(whole, n)]
        raise UserError(f"--batch {config.batch}: does not split evenly over {why}; take {' or '.join(take)}")
    if parallel.strategy == "pmap" and parallel.fsdp != 1:
        raise UserError(
            "--parallel.fsdp needs --parallel.strategy jit: pmap keeps all parameters on each device"
        )


def make_mesh(parallel: ParallelConfig, devices: Devices) -> Mesh:
    """Returns a (data, fsdp) mesh over the devices."""
    shape = len(devices) // parallel.fsdp, parallel.fsdp
    return jax.make_mesh(shape, MESH, axis_types=(AxisType.Auto,) * 2, devices=devices)


def state_shardings(mesh: Mesh, abstract: Any) -> Any:
    """Splits each array over `fsdp` along its largest axis that divides evenly; replicates the others."""
    parts = mesh.shape["fsdp"]

    def one(x: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [i for i, n in enumerate(x.shape) if parts > 1 and n % parts == 0]
        spec: list[str | None] = [None] * len(x.shape)
        if axes:
            spec[max(axes, key=lambda i: x.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(one, abstract)


def average_over(mesh: Mesh, shardings: Any) -> Callable[[Gradients], Gradients]:
    """Returns the `average` of `make_train_step` for a mesh.

    An array that is split over `fsdp` is gathered once, stays whole for the step, and its gradient is
    scattered: ZeRO stage 3 between steps (arXiv 1910.02054) and stage 2 within one ("SHARD_GRAD_OP", arXiv
    2304.11277).
    """
    specs, axes = (
        jax.tree.map(lambda x: x.spec, shardings),
        tuple(name for name in MESH if mesh.shape[name] > 1),
    )
    split = lambda spec: spec.index("fsdp") if "fsdp" in spec else None  # the dimension that is split

    def gather(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        return x if (i := split(spec)) is None else jax.lax.all_gather(x, "fsdp", axis=i, tiled=True)

    def scatter(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        if (i := split(spec)) is None:
            return jax.lax.pmean(x, axes)
        part = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=i, tiled=True) / mesh.shape["fsdp"]
        return jax.lax.pmean(part, "data") if "data" in axes else part

    def average(gradients: Gradients) -> Gradients:
        def local(params: Params, *args: Any) -> tuple[Params, Metrics]:
            grads, metrics = gradients(jax.tree.map(gather, params, specs), *args)
            return jax.tree.map(scatter, grads, specs), jax.lax.pmean(metrics, axes)

        one = PartitionSpec()
        # check_vma=False: JAX would sum the gradients of replicated parameters itself
        inputs, outputs = (specs, PartitionSpec(MESH), one, one), (specs, one)
        return jax.shard_map(local, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    return average


class Runner:
    """Places states and batches on a mesh of devices and runs the compiled step, which donates its state."""

    def __init__(
        self,
        gan: Gan,
        optimizer: optax.GradientTransformation,
        config: Config,
        devices: Devices,
        adversarial: Adversarial | None,
    ) -> None:
        """See `make_runner`."""
        check_devices(config, devices)
        self._gan, self._optimizer, self._config, self._adversarial = gan, optimizer, config, adversarial
        self._devices = devices
        self._on_cpu = devices[0].platform == "cpu"
        self._compiled: Any = None
        self.mesh = make_mesh(config.parallel, devices)
        self.abstract = jax.eval_shape(self._init)
        self.state_shardings = state_shardings(self.mesh, self.abstract)
        self.batch_sharding = NamedSharding(self.mesh, PartitionSpec(MESH))

    def _init(self) -> GanState:
        return init_state(self._gan, self._optimizer, self._config.seed)

    def _step(self, average: Callable[[Gradients], Gradients], shard: Shard) -> Any:
        return make_train_step(self._gan, self._optimizer, self._config, average, shard, self._adversarial)

    def _jitted(self) -> Any:
        """The step under jit, not yet compiled."""
        average = average_over(self.mesh, self.state_shardings.params)
        shard = Shard(MESH if self.mesh.size > 1 else None)  # a single device has all rows, and gathers none
        return jax.jit(
            self._step(average, shard),
            donate_argnums=0,
            in_shardings=(self.state_shardings, self.batch_sharding),
            out_shardings=(self.state_shardings, None),
        )

    @property
    def global_abstract(self) -> GanState:
        """Shapes and shardings of the state in the global view, which a checkpoint is restored to."""
        one = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        return jax.tree.map(one, self.abstract, self.state_shardings)

    def init(self) -> GanState:
        """Returns a fresh state, made in its place on the devices."""
        compiler_options = options(ONCE) if self._on_cpu else {}
        return self.place(
            jax.jit(self._init, out_shardings=self.state_shardings, compiler_options=compiler_options)()
        )

    def place(self, state: GanState) -> GanState:
        """Moves a state in the global view onto the devices."""
        return jax.device_put(state, self.state_shardings)

    def view(self, state: GanState) -> GanState:
        """Returns the state in the global view, for checkpoints."""
        return state

    def local(self, tree: Any) -> Any:
        """Returns a part of a state, in the global view, whole on one local device. All processes call it."""
        whole = jax.tree.map(lambda x: NamedSharding(x.sharding.mesh, PartitionSpec()), tree)
        return jax.tree.map(lambda x: x.addressable_data(0), jax.device_put(tree, whole))

    def put(self, batch: dict[str, Any]) -> Batch:
        """Moves this process's rows of a global batch onto its devices."""
        return {k: jax.make_array_from_process_local_data(self.batch_sharding, v) for k, v in batch.items()}

    def compile(self, state: GanState, batch: Batch) -> None:
        """Compiles the step ahead of its first call."""
        if self._compiled is None:
            compiler_options = options(TRAIN) if self._on_cpu else {}
            self._compiled = self._jitted().lower(state, batch).compile(compiler_options=compiler_options)

    def step(self, state: GanState, batch: Batch) -> tuple[GanState, Metrics]:
        """Runs one train step."""
        self.compile(state, batch)
        return self._compiled(state, batch)

    def state_bytes(self) -> int:
        """Returns the bytes of the state on each device."""
        shard = lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
        return sum(jax.tree.leaves(jax.tree.map(shard, self.abstract, self.state_shardings)))

    @property
    def executable(self) -> Any:
        """The compiled step, for its HLO, cost and memory analyses."""
        return self._compiled


class PmapRunner(Runner):
    """A Runner by `pmap`: states and batches have a leading device axis."""

    def __init__(self, *args: Any) -> None:
        """See `make_runner`."""
        super().__init__(*args)
        flat = Mesh(np.asarray(self._devices), (AXIS,))
        self._per_device = NamedSharding(flat, PartitionSpec(AXIS))
        self._replicated = NamedSharding(flat, PartitionSpec())
        self._local_count = sum(d.process_index == jax.process_index() for d in self._devices)

    def _jitted(self) -> Any:
        average = lambda gradients: lambda *args: jax.lax.pmean(gradients(*args), AXIS)
        return jax.pmap(
            self._step(average, Shard(AXIS)), axis_name=AXIS, donate_argnums=0, devices=self._devices
        )

    def place(self, state: GanState) -> GanState:
        """Copies a state in the global view to each device."""
        n = len(self._devices)
        copy = lambda x: jax.make_array_from_callback((n, *x.shape), self._per_device, lambda _: x[None])
        return jax.tree.map(lambda x: copy(np.asarray(x)), state)

    def view(self, state: GanState) -> GanState:
        """Returns the state without its device axis."""

        def one(x: jax.Array) -> jax.Array:
            shards = [shard.data[0] for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape[1:], self._replicated, shards)

        return jax.tree.map(one, state)

    def put(self, batch: dict[str, Any]) -> Batch:
        """Splits this process's rows of a global batch over its devices."""
        split = {k: v.reshape(self._local_count, -1, *v.shape[1:]) for k, v in batch.items()}
        return {k: jax.make_array_from_process_local_data(self._per_device, v) for k, v in split.items()}

    def step(self, state: GanState, batch: Batch) -> tuple[GanState, Metrics]:
        """Runs one train step; the metrics are the first local device's, as all have the same."""
        state, metrics = super().step(state, batch)
        return state, jax.tree.map(lambda x: x.addressable_shards[0].data[0], metrics)


def make_runner(
    gan: Gan,
    optimizer: optax.GradientTransformation,
    config: Config,
    devices: Devices | None = None,
    adversarial: Adversarial | None = None,
) -> Runner:
    """Returns what runs the training step of `config` on the devices (default: all), by jit or pmap.

    adversarial: the form of the game; default: the one that `config.loss.adversarial` names.
    Raises UserError if batch or parameters do not split evenly over the devices.
    """
    kind = PmapRunner if config.parallel.strategy == "pmap" else Runner
    return kind(gan, optimizer, config, devices or jax.devices(), adversarial)
