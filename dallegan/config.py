"""Every setting of a run, with its unit and its bounds: frozen dataclasses, filled by a preset and by flags.

A number's bounds are annotations of its type (`annotated_types`). `check` enforces them, and also what
settings demand of each other. A comment on a field's line, or right above, is its help on the command line.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import json
import math
import pkgutil
from typing import Annotated, Any, Literal, get_args, get_origin

import dacite
import flax.traverse_util
from annotated_types import Ge, Le, Lt

from dallegan.errors import UserError

SENTENCE = 512  # numbers in a sentence vector of the pretrained encoder
MOST_VALUES = 64  # of a setting that takes several
MOST_LAYERS = 256  # that the networks apply in all; to trace so many takes seconds


class Resumable:
    """Marks a setting, or a section of settings, that may change when a run resumes."""


# What decides the size of a network has an upper bound, because a model's config.json may come from anywhere:
# a small file must not ask for all memory.
Width = Annotated[int, Ge(1), Le(2**16)]
Depth = Annotated[int, Ge(0), Le(256)]
Weight = Annotated[float, Ge(0)]
Decay = Annotated[float, Ge(0), Lt(1)]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the captioned images come from."""

    # storybook | emoji | folder:PATH | webdataset:PATTERN | tfds:NAME | arrayrecord:DIR
    source: str = "storybook"
    size: Annotated[int, Ge(0), Le(4096)] = 32  # side of the images, pixels
    objects: Annotated[int, Ge(1)] = 1  # storybook: most objects in an image
    # storybook: fraction of the false captions that differ from the true one in a single attribute
    hard_negatives: Annotated[float, Ge(0), Le(1)] = 0.5
    encoding: str = ""  # of text files without a byte order mark, for example gbk; "": utf-8
    flip: bool = False  # mirror half of the images whose captions do not name a side
    threads: Annotated[int, Ge(1), Resumable()] = 2  # threads that decode images


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Tokenizer and text encoders. Generator and discriminator have an encoder each."""

    # frozen: a learned head over the vectors of a pretrained multilingual encoder (extra `frozen`)
    encoder: Literal["transformer", "rnn", "frozen"] = "transformer"
    vocab: Annotated[int, Ge(300), Le(2**20)] = 1024  # most tokens of the tokenizer, 256 of them bytes
    length: Annotated[int, Ge(2), Le(2**16)] = 24  # tokens that a caption is padded or cut to
    width: Width = 128  # features of the sentence vector and of each token's vector
    layers: Annotated[int, Ge(1), Le(256)] = 2  # layers of the encoder
    prenorm: bool = False  # rnn: a LayerNorm before each layer, for captions whose word order matters

    @property
    def heads(self) -> int:
        """Attention heads of the transformer, of 64 features each."""
        return max(1, self.width // 64)

    @property
    def ids(self) -> int:
        """Length T of a caption in i32[B, T]: token ids, or for `frozen` a hash and the bits of a vector."""
        return 1 + SENTENCE if self.encoder == "frozen" else self.length


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Generator, decoder and discriminator."""

    recipe: Literal["residual", "dcgan"] = "residual"  # networks; dcgan: those of arXiv 1511.06434
    noise: Width = 64  # dimensions of the noise
    style: Width = 256  # features of the style vector: made from caption and noise, it modulates the blocks
    width: Width = 256  # channels of the shared upsampling block: a multiple of 4; multiples of 128 are fast
    patch: Width = 2  # side of the patch that the decoder paints from one feature, pixels
    # channels of a residual block that corrects the painted patches; 0: none
    refine: Annotated[int, Ge(0), Le(2**16)] = 0
    # channels of each detail stage, which halves the patches of decoder and discriminator; none: no stages
    detail: tuple[Width, ...] = ()
    # thresholds of wavelet denoising, grey levels of 255, finest scale first; none: no denoising
    shrink: tuple[Annotated[float, Ge(0), Le(2**16)], ...] = ()
    blocks: Annotated[int, Ge(1), Le(256)] = 1  # residual blocks in the upsampling block
    tied: bool = True  # the decoder runs the generator's own upsampling block
    # sides of the feature maps that attend to the caption's tokens; none: no attention
    attention: tuple[Annotated[int, Ge(0), Le(2**16)], ...] = (8,)
    critic_patch: Width = 4  # side of the patch that the discriminator reads as one feature, pixels
    # the discriminator's channels at each resolution, finest first; the last value serves all coarser ones
    critic_widths: tuple[Width, ...] = (128, 256)
    critic_blocks: tuple[Depth, ...] = (2, 1)  # the discriminator's residual blocks at each resolution


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The players' losses."""

    adversarial: Literal["rpgan", "hinge", "nonsaturating"] = "rpgan"  # adversarial loss
    gamma: tuple[Weight, Weight] = (1.0, 0.1)  # weight of R1 and R2: start and end of a cosine
    # fraction of each batch that R1 and R2 are computed on, a lazy regularization: 1, 1/2, 1/3, ...
    penalty_share: Annotated[float, Ge(1e-3), Le(1)] = 1.0
    matching: Weight = 1.0  # weight of the matching term: the true caption against a false one
    # weight of the contrastive term, an image against all captions of the batch: discriminator's, generator's
    contrast: tuple[Weight, Weight] = (1.0, 1.0)
    packing: Weight = 0.0  # weight of the game over two images of a caption at a time; 0: one at a time
    diversity: Weight = 0.0  # weight of the term that makes two generated images of a caption differ

    @property
    def group(self) -> int:
        """Rows of a batch of which the first two are images of one caption; 1 without packing."""
        return 8 if self.packing else 1


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of all images that the discriminator sees (DiffAugment, arXiv 2006.10738)."""

    shift: Annotated[float, Ge(0), Lt(1)] = 0.0625  # farthest that an image moves, as a fraction of its side
    colour: Weight = 0.0  # strength of brightness, saturation and contrast; paper, for small data: 1
    cutout: Annotated[float, Ge(0), Lt(1)] = 0.0  # side of a blanked square, as a fraction; paper: 0.5


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer of both players. Schedules are fractions of the run, so that they scale with its length."""

    lr: tuple[Weight, Weight] = (2e-4, 5e-5)  # learning rate of encoder, generator and decoder: start and end
    lr_d: tuple[Weight, Weight] = (2e-4, 5e-5)  # learning rate of the discriminator: start and end
    muon: Weight = 0.0  # Muon's rate for hidden kernels, as a multiple of the learning rate; 0: Adam for all
    # a kernel of fan-in n > `fan` has Adam's rate times fan / n; 0: every kernel has the full rate
    fan: Annotated[int, Ge(0)] = 512
    warmup: Annotated[float, Ge(0), Le(1)] = 0.01  # fraction of the run in which the rate rises from 0
    betas: tuple[Decay, Decay] = (0.0, 0.99)  # Adam's β1 and β2, the decays of its two moving averages
    ema: Weight = 0.06  # half-life of the generator's moving average at the end, as a fraction of the run


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How a step is spread over devices."""

    strategy: Annotated[Literal["jit", "pmap"], Resumable()] = "jit"  # JAX's way to use several devices
    fsdp: Annotated[int, Ge(1), Resumable()] = 1  # devices that share one copy of the parameters
    # micro-batches of a batch, run one at a time to save memory; the contrastive term compares within one
    accumulate: Annotated[int, Ge(1)] = 1
    # dtype of the computation; auto: bfloat16 on GPU and TPU, float32 on CPU
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # HOST:PORT of process 0 of several; "": found automatically on TPU VMs, GKE, Slurm and Open MPI
    coordinator: Annotated[str, Resumable()] = ""
    processes: Annotated[int, Ge(1), Resumable()] = 1  # number of processes, if `coordinator` is given
    process: Annotated[int, Ge(0), Resumable()] = 0  # this process's number, counted from 0, likewise


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often the run reports and saves."""

    metrics: Annotated[int, Ge(1)] = 1600  # images between lines of metrics.jsonl
    samples: Annotated[int, Ge(1)] = 10_000  # images between sample grids
    # images between evaluations by the storybook's judge, besides one at each checkpoint; 0: none at all
    evaluate: Annotated[int, Ge(0)] = 10_000
    checkpoint: Annotated[int, Ge(1)] = 10_000  # images between checkpoints
    wandb: str = ""  # Weights & Biases project that also gets the metrics (extra `wandb`); "": none


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    workdir: Annotated[str, Resumable()] = ""  # directory that the run writes to; presets set runs/PRESET
    steps: Annotated[int, Ge(1)] = 1000  # training steps of `batch` images each
    batch: Annotated[int, Ge(1)] = 64  # images a step, over all devices
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0  # seed of everything random
    init_from: str = ""  # model to fine-tune: its averaged weights and its tokenizer; "": train from scratch
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    parallel: ParallelConfig = ParallelConfig()
    log: Annotated[LogConfig, Resumable()] = LogConfig()

    @property
    def images(self) -> int:
        """Length of the run, in images."""
        return self.steps * self.batch


def flatten(config: Config) -> dict[str, Any]:
    """Returns all settings by their names on the command line: {"data.size": 32, ...}."""
    return flax.traverse_util.flatten_dict(dataclasses.asdict(config), sep=".")


def _annotations(annotation: Any) -> tuple[Any, ...]:
    """Returns what a type demands: its annotations, those of a tuple's values, and a `Literal` itself."""
    marks = getattr(annotation, "__metadata__", ())
    plain = get_args(annotation)[0] if marks else annotation
    if get_origin(plain) is Literal:
        return (*marks, plain)
    return (*marks, *_annotations(get_args(plain)[0])) if get_origin(plain) is tuple else marks


@functools.cache
def _settings(kind: Any = Config) -> dict[str, tuple[Any, ...]]:
    """Returns the annotations of every setting: {"data.size": (Ge(0), Le(4096)), ...}."""
    found: dict[str, tuple[Any, ...]] = {}
    for field in dataclasses.fields(kind):
        marks, plain = _annotations(field.type), field.type
        plain = get_args(plain)[0] if get_origin(plain) is Annotated else plain
        if dataclasses.is_dataclass(plain):
            found |= {f"{field.name}.{name}": (*marks, *more) for name, more in _settings(plain).items()}
        else:
            found[field.name] = marks
    return found


def fixed_settings(config: Config) -> dict[str, Any]:
    """Returns the settings that may not change when a run resumes, by their names on the command line."""
    values, marked = flatten(config), _settings().items()
    return {name: values[name] for name, marks in marked if not any(isinstance(m, Resumable) for m in marks)}


def conflicts(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ and may not change when a run resumes: {name: (old, new)}."""
    a, b = fixed_settings(old), fixed_settings(new)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def _check_bounds(name: str, value: Any, marks: tuple[Any, ...]) -> None:
    """Raises UserError if a value is out of bounds or not finite, none of its choices, or one of too many."""
    values = value if isinstance(value, tuple) else (value,)
    flag = f"--{name.replace('_', '-')}"
    for choices in (get_args(mark) for mark in marks if get_origin(mark) is Literal):
        if value not in choices:
            raise UserError(f"{flag} {value}: choose {', '.join(choices[:-1])} or {choices[-1]}")
    if len(values) > MOST_VALUES:
        raise UserError(f"{flag}: has {len(values)} values; {MOST_VALUES} are the most")
    numbers = [v for v in values if isinstance(v, int | float)]
    bounds: dict[str, Any] = {}
    for mark in marks:
        if isinstance(mark, Ge | Le | Lt):
            bounds |= dataclasses.asdict(mark)  # {"ge": 1}
    low, high, below = bounds.get("ge", -math.inf), bounds.get("le", math.inf), bounds.get("lt", math.inf)
    if all(low <= v <= high and v < below for v in numbers):  # below infinity; false for NaN
        return
    if high < math.inf or below < math.inf:
        limit = f"a number from {low} to {f'below {below}' if below <= high else high}"
    else:
        limit = f"at least {low}" + ", and finite" * (not all(map(math.isfinite, numbers)))
    raise UserError(f"{flag} {' '.join(map(str, values))}: must be {limit}")


def _is_power_of_two(n: float) -> bool:
    return n >= 1 and n == int(n) and int(n) & (int(n) - 1) == 0


def check(config: Config) -> None:
    """Raises UserError if a setting is out of bounds or contradicts another, before anything is allocated."""
    values = flatten(config)
    for name, marks in _settings().items():
        _check_bounds(name, values[name], marks)
    (_check_residual if config.model.recipe == "residual" else _check_dcgan)(config)
    c, m = config, config.model
    if (depth := count_layers(c)[0]) > MOST_LAYERS:
        hint = "lower --text.layers, --model.blocks or --model.critic-blocks"
        raise UserError(f"{depth:,} layers at {c.data.size} px; {MOST_LAYERS} are the most: {hint}")
    if m.width % 4:
        raise UserError(f"--model.width {m.width}: must be a multiple of 4, as its attention has 4 heads")
    if not m.critic_blocks or len(m.critic_widths) != len(m.critic_blocks):
        widths, blocks = _words(m.critic_widths), _words(m.critic_blocks)
        both = f"--model.critic-widths {widths} and --model.critic-blocks {blocks}"
        raise UserError(f"{both}: need one value a resolution each, at least one")
    if 2 ** len(m.shrink) > c.data.size:
        most = f"{c.data.size} px have {int(math.log2(c.data.size))} scales"
        raise UserError(
            f"--model.shrink {_words(m.shrink)}: has {len(m.shrink)} values, and {most}; give fewer"
        )
    if c.text.encoder == "rnn" and c.text.width % 2:
        raise UserError(f"--text.width {c.text.width}: must be even, half for each direction of the rnn")
    if c.loss.packing and c.loss.diversity:
        raise UserError("--loss.packing and --loss.diversity: two ways to the same end; set one to 0")
    stride = 1 / c.loss.penalty_share
    uneven = bool(c.loss.packing) and not _is_power_of_two(round(stride))
    if uneven or abs(stride - round(stride)) > 1e-3:
        shares = "1, 1/2, 1/4, ... with --loss.packing" if uneven else "1, 1/2, 1/3, ..., 1/1000"
        raise UserError(f"--loss.penalty-share {c.loss.penalty_share}: must be {shares}")


def _words(values: tuple[Any, ...]) -> str:
    return " ".join(map(str, values)) or "(none)"


def _check_size(config: Config, unit: int, why: str) -> None:
    size = config.data.size
    if not _is_power_of_two(size / unit):
        sizes = ", ".join(str(unit * 2**i) for i in range(1, 4))
        raise UserError(f"--data.size {size}: must be {unit}{why} times a power of two, for example {sizes}")


def _check_residual(config: Config) -> None:
    m, size = config.model, config.data.size
    _check_size(config, 8 * m.patch, " (8 x model.patch)")
    if not _is_power_of_two(size / m.critic_patch / 4):
        why = f"{size} px / patch is halved down to 4, so it must be a power of two up to {size // 4}"
        raise UserError(f"--model.critic-patch {m.critic_patch}: {why}")
    if m.patch % 2 ** len(m.detail) or m.critic_patch % 2 ** len(m.detail):
        patches = f"--model.patch {m.patch} and --model.critic-patch {m.critic_patch}"
        raise UserError(
            f"--model.detail {_words(m.detail)}: each halves {patches}; give fewer, or larger patches"
        )
    sides = feature_sides(config)
    if wrong := sorted(set(m.attention) - set(sides)):
        maps = f"blocks of {size} px work on maps of sides {', '.join(map(str, sides))}"
        raise UserError(f"--model.attention {_words(tuple(wrong))}: {maps}; take some of these, or none")


def _check_dcgan(config: Config) -> None:
    _check_size(config, 16, "")
    baseline = "which --model.recipe dcgan does not have"
    if any((*config.loss.contrast, config.loss.packing)):
        terms = "--loss.contrast and --loss.packing: need the sentence term and a head for pairs"
        raise UserError(f"{terms}, {baseline}; set them to 0 0 and 0")
    if config.optim.muon:
        raise UserError(f"--optim.muon {config.optim.muon}: is for residual trunks, {baseline}; set it to 0")


def feature_sides(config: Config) -> list[int]:
    """Returns the sides of the feature maps that the upsampling block works on, coarsest first."""
    return [4 * 2**i for i in range(int(math.log2(config.data.size / config.model.patch / 4)))]


def count_layers(config: Config) -> tuple[int, int]:
    """Returns how many layers the networks apply, and the least number of tensors that these consist of."""
    c, m = config, config.model
    text = 0 if c.text.encoder == "frozen" else 2 * c.text.layers  # both players have an encoder
    stages = int(math.log2(c.data.size / m.critic_patch / 4)) + 1
    critic = sum((*m.critic_blocks, *m.critic_blocks[-1:] * stages)[:stages])
    return text + m.blocks * len(feature_sides(c)) + critic, 12 * text + 2 * (m.blocks + critic)


def presets() -> list[str]:
    """Returns the names of the presets, the modules of `dallegan.configs`."""
    folder = importlib.import_module("dallegan.configs").__path__
    return sorted(module.name for module in pkgutil.iter_modules(folder))


def load_preset(name: str) -> Config:
    """Returns the preset `configs/NAME.py`. Raises UserError if there is none."""
    if name not in presets():
        near = difflib.get_close_matches(name, presets(), 1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"no preset {name!r}{meant} Presets: {', '.join(presets())}")
    config = importlib.import_module(f"dallegan.configs.{name}").config()
    return dataclasses.replace(config, workdir=f"runs/{name}")


def to_json(config: Config) -> str:
    """Returns the configuration as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def _number(value: Any) -> Any:
    """Returns `value`. Raises TypeError for true and false, which Python counts as integers."""
    if isinstance(value, bool):
        raise TypeError(f"{json.dumps(value)} is not a number")
    return value


def _tuples(members: dict[str, Any]) -> dict[str, Any]:
    """Returns the members of a JSON object with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in members.items()}


def from_json(text: str) -> Config:
    """Returns the configuration that `to_json` wrote, unchecked. Raises UserError if the text is not one."""
    strict = dacite.Config(strict=True, type_hooks={int: _number, float: _number})
    try:
        values = json.loads(text, object_hook=_tuples)
        if not isinstance(values, dict):
            raise TypeError("it is not a JSON object")
        return dacite.from_dict(Config, values, strict)
    except dacite.UnexpectedDataError as error:
        names = ", ".join(sorted(map(repr, error.keys)))
        why = f"unknown settings {names:.200} (written by a newer version?)"
    except dacite.DaciteFieldError as error:
        value = getattr(error, "value", None)
        said = "a list with values of another type" if inspect.isgenerator(value) else f"{value!r:.100}"
        why = f"{error.field_path} is {said}"
    except (ValueError, TypeError, RecursionError) as error:
        why = str(error)
    raise UserError(f"not a dallegan configuration: {why}")
