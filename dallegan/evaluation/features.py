"""The networks whose features distances are measured in: `--features NAME --weights FILE`.

`efficientnet-lite0` is the default: it comes with the extra `eval` and needs no network. `inception` is the network of the FID (arXiv
1706.08500) as torch-fidelity has it, `clip` that of the CLIPScore (arXiv 2104.08718) as open_clip has it: extras `fid` and `clip`, and
weights that are read from a file or the usual cache, and never downloaded here.
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

from dallegan.errors import UserError
from dallegan.evaluation.networks import FEATURES, EfficientNetLite0, load_params, weights_file
from dallegan.io.files import cache, write_atomic
from dallegan.models.layers import to_float

CHUNK = 50  # pictures through a network at once
SIDE = 224  # px that pictures are resized to for EfficientNet-Lite0: its own
KEPT = 2**30  # bytes of real pictures' features on disk, at most
CLIP = "ViT-B-32-quickgelu", "openai"  # the CLIPScore's


@dataclasses.dataclass(frozen=True)
class Features:
    """A feature network."""

    about: str
    size: int  # D
    extract: Callable[[np.ndarray], np.ndarray]  # uint8[N, S, S, 3] -> f32[N, D]
    frechet: str = "fd"  # what the Fréchet distance is called in it; "fid" is one network's alone
    read: Callable[[Sequence[str]], np.ndarray] | None = None  # captions -> f32[N, D], where it reads text

    def of_real(self, images: np.ndarray) -> np.ndarray:
        """`extract` of pictures that every model is measured against: kept in ~/.cache/dallegan/features, so that the next model takes half the
        time. The first chunk is always computed anew: what other weights or another version left there does not agree with it."""
        folder = cache() / "features"
        file = folder / f"{hashlib.sha256(f'{self.about} {images.shape}'.encode() + images.tobytes()).hexdigest()}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged
            kept = np.load(file, allow_pickle=False)
            first = self.extract(images[:CHUNK])
            if kept.shape == (len(images), self.size) and np.allclose(kept[: len(first)], first, 1e-3, 1e-3):
                file.touch()
                return kept
        found, data = self.extract(images), io.BytesIO()
        np.save(data, found)
        with contextlib.suppress(OSError):  # a disk that is full or read-only costs time and nothing else
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, data.getvalue())
            files = sorted(folder.glob("*.npy"), key=lambda f: -f.stat().st_mtime)
            for old, total in zip(files, itertools.accumulate(f.stat().st_size for f in files), strict=True):
                if total > KEPT:
                    old.unlink(missing_ok=True)
        return found


def make_features(name: str = "efficientnet-lite0", weights: pathlib.Path | None = None) -> Features:
    """The network of that name, one of MAKERS. UserError where its extra or its weights are missing, or the file holds something else."""
    try:
        return MAKERS[name](weights)
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        first = str(error).strip().split("\n")[0]
        raise UserError(f"--features {name}: {weights or 'the cached weights'} cannot be used ({type(error).__name__}: {first})") from None


def efficientnet(weights: pathlib.Path | None) -> Features:
    """EfficientNet-Lite0, in Flax."""
    params = {"params": load_params(weights or weights_file())}
    return Features(
        f"efficientnet-lite0 at {SIDE} px{f', {weights.name}' if weights else ''}",
        FEATURES,
        lambda images: by_chunks(functools.partial(_efficientnet, params), images, "features"),
    )


@jax.jit
def _efficientnet(params: Any, images: jax.Array) -> Any:
    return EfficientNetLite0().apply(params, jax.image.resize(to_float(images), (len(images), SIDE, SIDE, 3), "bilinear"))


def inception(weights: pathlib.Path | None) -> Features:
    """The Inception network of the FID: 2,048 features of its last pooling, after TensorFlow 1's own resizing."""
    _need("torch_fidelity", "inception", "fid")
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    file = weights or pathlib.Path(torch.hub.get_dir()) / "checkpoints" / pathlib.Path(URL_INCEPTION_V3).name
    if not file.is_file():
        raise UserError(f"--features inception: {file} is not there; download {URL_INCEPTION_V3} and name it with --weights FILE")
    torch.load(file, map_location="cpu", weights_only=True)  # torch-fidelity would execute what a file of something else says
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file)).to(device := _device())

    def extract(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device))[0].cpu().numpy()

    return Features(f"torch-fidelity's Inception, {file.name}", 2048, lambda images: by_chunks(extract, images, "features"), frechet="fid")


def clip(weights: pathlib.Path | None) -> Features:
    """CLIP's embeddings of pictures and of captions, each of length one; the words that the CLIPScore puts before a caption are put there."""
    _need("open_clip", "clip", "clip")
    import huggingface_hub
    import open_clip
    import torch
    from PIL import Image

    name, tag = CLIP
    repository = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].strip("/")
    cached = (huggingface_hub.try_to_load_from_cache(repository, f) for f in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
    file = weights or next((pathlib.Path(f) for f in cached if isinstance(f, str)), None)
    if file is None or not file.is_file():
        missing = f"{file} is not there" if file else "its weights are not in the cache"
        raise UserError(f"--features clip: {missing}; run `hf download {repository}`, or name {name}'s file with --weights FILE")
    network, prepare = open_clip.create_model_from_pretrained(name, pretrained=str(file), weights_only=True, device=(device := _device()))
    tokenize = open_clip.get_tokenizer(name)

    def embed(function: Callable[..., Any], rows: Any) -> np.ndarray:
        with torch.inference_mode():
            return function(rows.to(device), normalize=True).float().cpu().numpy()

    pictures = lambda images: embed(network.encode_image, torch.stack([prepare(Image.fromarray(x)) for x in images]))
    captions = lambda tokens: embed(network.encode_text, torch.from_numpy(tokens))
    return Features(
        f"open_clip's {name}, {file.name}", network.visual.output_dim,
        extract=lambda images: by_chunks(pictures, images, "features"),
        read=lambda texts: by_chunks(captions, tokenize([f"A photo depicts {text}" for text in texts]).numpy(), "captions"),
    )  # fmt: skip


MAKERS: dict[str, Callable[[pathlib.Path | None], Features]] = {"efficientnet-lite0": efficientnet, "inception": inception, "clip": clip}


def _need(module: str, name: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"--features {name} needs the extra `{extra}`: pip install 'dallegan[{extra}]'")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def by_chunks(function: Callable[[Any], Any], rows: Any, what: str) -> Any:
    """`function` of 50 rows (of each array of a tree) at a time, the last chunk filled up, so that one program is compiled."""
    total, parts = len(jax.tree.leaves(rows)[0]), []
    for start in tqdm(range(0, total, CHUNK), desc=what, leave=False, disable=total < 1000 or not sys.stderr.isatty()):
        chosen, kept = np.minimum(np.arange(start, start + CHUNK), total - 1), total - start
        chunk = jax.tree.map(lambda x, chosen=chosen: x[chosen], rows)
        parts.append(jax.tree.map(lambda x, kept=kept: np.asarray(x)[:kept], function(chunk)))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)
