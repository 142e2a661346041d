"""The feature networks that distances between images are measured in: `--features NAME --weights FILE`.

- `efficientnet-lite0`, the default, comes with the extra `eval` and downloads nothing.
- `inception` (extra `fid`) is the network of the FID (arXiv 1706.08500), from torch-fidelity.
- `clip` (extra `clip`) is the network of the CLIPScore (arXiv 2104.08718), from open_clip.

The weights of the last two are read from a file or from their package's cache, and are never downloaded here.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dallegan.compile import chunks
from dallegan.errors import UserError
from dallegan.evaluation.networks import FEATURES, EfficientNetLite0, load_params, weights_file
from dallegan.io.files import cache, write_atomic
from dallegan.models.layers import to_float

CHUNK = 50  # images that a network sees at once
SIDE = 224  # px that images are resized to for EfficientNet-Lite0, its native size
CACHE_BYTES = 2**30  # most bytes of features that the cache keeps
CLIP_NAME, CLIP_TAG = "ViT-B-32-quickgelu", "openai"  # the network of the CLIPScore


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns images, and maybe captions, into features."""

    description: str  # name, input size and weights; part of the cache's keys
    size: int  # D, features of an image
    extract: Callable[[np.ndarray], np.ndarray]  # uint8[N, S, S, 3] -> f32[N, D]
    frechet: str = "fd"  # name of the Fréchet distance; only Inception's is called "fid"
    embed_captions: Callable[[Sequence[str]], np.ndarray] | None = (
        None  # -> f32[N, D]; None: it reads no text
    )

    def extract_cached(self, images: np.ndarray) -> np.ndarray:
        """Returns `extract(images)`, from ~/.cache/dallegan/features if the same images were there before.

        Real images are the same for every model that is measured, so the second model takes half the time.
        The first chunk is always computed again and compared, since features of other weights, or of another
        version of the network, may lie under the same name. An unusable cache costs time and raises nothing.
        """
        # by hand: both joblib.Memory and diskcache execute what a damaged or planted file in their folder
        # says, as they read pickles
        key = hashlib.sha256(f"{self.description} {images.shape}".encode() + images.tobytes()).hexdigest()
        file = cache() / "features" / f"{key}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # absent or damaged
            found = np.load(file, allow_pickle=False)
            first = self.extract(images[:CHUNK])
            fits = found.shape == (len(images), self.size)
            if fits and np.allclose(found[: len(first)], first, 1e-3, 1e-3):
                file.touch()
                return found
        found = self.extract(images)
        with contextlib.suppress(OSError):  # the disk is full or read-only
            _write_features(file, found)
        return found


def _write_features(file: pathlib.Path, found: np.ndarray) -> None:
    """Writes a file of the cache and deletes the files used longest ago, down to `CACHE_BYTES` in all."""
    np.save(data := io.BytesIO(), found)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, data.getvalue())
    newest_first = sorted(file.parent.glob("*.npy"), key=lambda f: -f.stat().st_mtime)
    totals = itertools.accumulate(f.stat().st_size for f in newest_first)
    for old, total in zip(newest_first, totals, strict=True):
        if total > CACHE_BYTES:
            old.unlink(missing_ok=True)


def make_features(name: str = "efficientnet-lite0", weights: pathlib.Path | None = None) -> FeatureNetwork:
    """Returns the feature network that `--features` names.

    Raises UserError if its extra or its weights are missing, or if the file holds something else.
    """
    match name:
        case "efficientnet-lite0":
            make = efficientnet
        case "inception":
            make = inception
        case "clip":
            make = clip
        case _:
            raise UserError(f"--features {name}: choose efficientnet-lite0, inception or clip")
    try:
        return make(weights)
    except UserError:
        raise
    except Exception as error:  # torch and open_clip raise nearly anything for a damaged file
        reason, file = str(error).strip().split("\n")[0], weights or "the cached weights"
        raise UserError(
            f"--features {name}: {file} cannot be used ({type(error).__name__}: {reason})"
        ) from None


def efficientnet(weights: pathlib.Path | None) -> FeatureNetwork:
    """Returns EfficientNet-Lite0, in Flax."""
    params = {"params": load_params(weights or weights_file())}
    apply = functools.partial(_efficientnet, params)
    return FeatureNetwork(
        f"efficientnet-lite0 at {SIDE} px{f', {weights.name}' if weights else ''}",
        FEATURES,
        lambda images: map_chunks(apply, images, "features"),
    )


@jax.jit
def _efficientnet(params: Any, images: jax.Array) -> Any:
    resized = jax.image.resize(to_float(images), (len(images), SIDE, SIDE, 3), "bilinear")
    return EfficientNetLite0().apply(params, resized)


def inception(weights: pathlib.Path | None) -> FeatureNetwork:
    """Returns the Inception network of the FID: the 2,048 features of its last pooling.

    It resizes images itself, as TensorFlow 1 did.
    """
    _check_extra("torch_fidelity", "inception", "fid")
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    cached = pathlib.Path(torch.hub.get_dir()) / "checkpoints" / pathlib.Path(URL_INCEPTION_V3).name
    file = weights or cached
    if not file.is_file():
        how = f"download {URL_INCEPTION_V3} and name the file with --weights FILE"
        raise UserError(f"--features inception: {file} is not there; {how}")
    # torch-fidelity would execute code in the file, and this call raises if there is any
    torch.load(file, map_location="cpu", weights_only=True)
    device = _device()
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
    network = network.to(device)

    def extract(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device))[0].cpu().numpy()

    return FeatureNetwork(
        f"torch-fidelity's Inception, {file.name}",
        2048,
        lambda images: map_chunks(extract, images, "features"),
        frechet="fid",
    )


def clip(weights: pathlib.Path | None) -> FeatureNetwork:
    """Returns CLIP's embeddings of images and of captions, each of length one.

    Captions are embedded behind "A photo depicts", as the CLIPScore has it.
    """
    _check_extra("open_clip", "clip", "clip")
    import huggingface_hub
    import open_clip
    import torch
    from PIL import Image

    repository = open_clip.get_pretrained_cfg(CLIP_NAME, CLIP_TAG)["hf_hub"].strip("/")
    names = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
    cached = (huggingface_hub.try_to_load_from_cache(repository, name) for name in names)
    file = weights or next((pathlib.Path(path) for path in cached if isinstance(path, str)), None)
    if file is None or not file.is_file():
        missing = f"{file} is not there" if file else "its weights are not in the cache"
        how = f"run `hf download {repository}`, or name {CLIP_NAME}'s file with --weights FILE"
        raise UserError(f"--features clip: {missing}; {how}")
    device = _device()
    network, preprocess = open_clip.create_model_from_pretrained(
        CLIP_NAME, pretrained=str(file), weights_only=True, device=device
    )
    tokenize = open_clip.get_tokenizer(CLIP_NAME)

    def embed(function: Callable[..., Any], rows: Any) -> np.ndarray:
        with torch.inference_mode():
            return function(rows.to(device), normalize=True).float().cpu().numpy()

    def embed_images(images: np.ndarray) -> np.ndarray:
        return embed(network.encode_image, torch.stack([preprocess(Image.fromarray(x)) for x in images]))

    def embed_tokens(tokens: np.ndarray) -> np.ndarray:
        return embed(network.encode_text, torch.from_numpy(tokens))

    def embed_captions(captions: Sequence[str]) -> np.ndarray:
        tokens = tokenize([f"A photo depicts {caption}" for caption in captions]).numpy()
        return map_chunks(embed_tokens, tokens, "captions")

    return FeatureNetwork(
        f"open_clip's {CLIP_NAME}, {file.name}",
        network.visual.output_dim,
        lambda images: map_chunks(embed_images, images, "features"),
        embed_captions=embed_captions,
    )


def _check_extra(module: str, name: str, extra: str) -> None:
    """Raises UserError if the module of a feature network is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"--features {name} needs the extra `{extra}`: pip install 'dallegan[{extra}]'")


def _device() -> str:
    """The device that PyTorch computes on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def map_chunks(function: Callable[[Any], Any], rows: Any, label: str) -> Any:
    """Returns `function(rows)`, computed in chunks of `CHUNK` rows.

    Rows are on the first axis of every array of a tree. From 1,000 rows on, a progress bar shows `label`.
    """
    total, parts = len(jax.tree.leaves(rows)[0]), []
    hidden = total < 1000 or not sys.stderr.isatty()
    steps = -(-total // CHUNK)
    for chosen, count in tqdm(chunks(total, CHUNK), total=steps, desc=label, leave=False, disable=hidden):
        part = function(jax.tree.map(lambda x, chosen=chosen: x[chosen], rows))
        parts.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], part))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
