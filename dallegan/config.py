"""Every setting of a run, with its unit: frozen dataclasses, filled by `configs/NAME.py` and overridden by flags."""

import dataclasses
import difflib
import importlib.util
import json
import math
import pathlib
from typing import Any, Literal, get_args, get_origin

from dallegan.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where captioned pictures come from."""

    source: str = "storybook"  # storybook | emoji | folder:PATH | webdataset:PATTERN | tfds:NAME | arrayrecord:DIR
    size: int = 32  # picture side, pixels
    objects: int = 1  # most objects in a storybook scene
    hard_negatives: float = 0.5  # storybook: share of the negative captions that swap one attribute of the true one
    flip: bool = False  # mirror half of the pictures whose caption names no side
    threads: int = 2  # decode threads


SENTENCE = 512  # features of a sentence vector of the pretrained encoder


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Tokenizer and the two text encoders (the generator's and the discriminator's own)."""

    encoder: Literal["transformer", "rnn", "frozen"] = "transformer"  # frozen: vectors of a pretrained multilingual encoder (extra `frozen`), a learned head
    vocab: int = 1024  # most sentencepiece tokens, 256 of them bytes
    length: int = 24  # tokens a caption is padded or cut to
    width: int = 128  # features D of the sentence and token vectors
    layers: int = 2
    prenorm: bool = False  # rnn: its layers read through a LayerNorm, as the transformer's do; for captions whose word order matters

    @property
    def heads(self) -> int:
        """Attention heads of the transformer, of 64 features each."""
        return max(1, self.width // 64)

    @property
    def ids(self) -> int:
        """Numbers T that a caption is given to the networks as."""
        return 1 + SENTENCE if self.encoder == "frozen" else self.length


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Generator, decoder and discriminator."""

    recipe: Literal["residual", "dcgan"] = "residual"  # dcgan: the plain convolution stack of Radford et al. 2016
    noise: int = 64  # dimensions of the latent
    style: int = 256  # width of the mapping of sentence and noise that modulates the blocks
    width: int = 256  # channels of the tied upsampling block; keep >= 128
    patch: int = 2  # the decoder's head paints patch x patch pixels a feature
    refine: int = 0  # channels of a residual block that corrects the painted patches; 0: none
    detail: tuple[int, ...] = ()  # channels of last stages, each in patches half as large again, the decoder's and the discriminator's
    shrink: tuple[float, ...] = ()  # wavelet shrinkage of the drawn picture: thresholds in grey levels of 255, finest scale first; none: as it is painted
    blocks: int = 1  # residual blocks inside the upsampling block
    tied: bool = True  # the decoder runs the generator's own upsampling block
    attention: tuple[int, ...] = (8,)  # sides of feature maps that attend to the caption's tokens
    critic_patch: int = 4  # the discriminator reads patch x patch pixels a feature
    critic_widths: tuple[int, ...] = (128, 256)  # its channels at each resolution, finest first; the last serves all further
    critic_blocks: tuple[int, ...] = (2, 1)  # its residual blocks at each resolution, likewise


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Objective of the game. γ follows a cosine from its first to its second value."""

    adversarial: Literal["rpgan", "hinge", "nonsaturating"] = "rpgan"
    gamma: tuple[float, float] = (1.0, 0.1)  # weight of R1 and R2
    penalty_share: float = 1.0  # share of each batch that the penalties are computed on: 1, 1/2, 1/3, ...
    matching: float = 1.0  # weight of the caption-matching term
    contrast: tuple[float, float] = (1.0, 1.0)  # weight of the contrastive term over the batch: discriminator's, generator's
    diversity: float = 0.0  # weight of the generator's diversity term: two pictures of one caption shall differ


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What the discriminator sees of real and generated images alike (DiffAugment, arXiv 2006.10738)."""

    shift: float = 0.0625  # each image is moved by up to this fraction of its side
    colour: float = 0.0  # strength of brightness, saturation and contrast; 1: as in the paper, for small data
    cutout: float = 0.0  # side of a blanked square, as a fraction of the image's side; 0.5: as in the paper


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Adam or Muon for both players; schedules are fractions of the run, so they scale with its budget in images."""

    lr: tuple[float, float] = (2e-4, 5e-5)  # of encoder, generator and decoder: cosine from, to
    lr_d: tuple[float, float] = (2e-4, 5e-5)  # of the discriminator, likewise
    muon: float = 0.0  # Muon's rate for the hidden kernels of the trunks, as a multiple of the rate above; 0: Adam for all parameters
    fan: int = 512  # a kernel of a larger fan-in has Adam's rate times fan / fan-in; 0: all have the rate
    warmup: float = 0.01  # fraction of the run over which the rate rises from 0
    betas: tuple[float, float] = (0.0, 0.99)  # Adam's decays of the first and second moment
    ema: float = 0.06  # final half-life of the moving average of the generator, fraction of the run


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How one step is spread over devices."""

    strategy: Literal["jit", "pmap"] = "jit"
    fsdp: int = 1  # devices that share one copy of the parameters
    accumulate: int = 1  # parts that each batch is taken in, to save memory; the contrastive term compares within a part
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the computation: bfloat16 on accelerators, float32 on CPU
    coordinator: str = ""  # HOST:PORT of process 0, where a run has several; "": found by itself on TPU VMs, GKE, Slurm and Open MPI
    processes: int = 1  # of the run, with `coordinator`
    process: int = 0  # this one's number


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often the run reports and saves, and to whom."""

    metrics: int = 1600  # images between lines of metrics.jsonl
    samples: int = 10_000  # images between sample grids
    evaluate: int = 10_000  # images between evaluations by the judge, on storybook of 32 or 64 px, beside those of each checkpoint; 0: none
    checkpoint: int = 10_000  # images between checkpoints
    wandb: str = ""  # project of Weights & Biases that the lines of metrics.jsonl go to as well, extra `wandb`; WANDB_MODE=offline keeps them here; "": none


@dataclasses.dataclass(frozen=True)
class Config:
    """A run."""

    workdir: str = ""  # where everything is written; presets set runs/PRESET
    steps: int = 1000  # budget: training steps of `batch` images each
    batch: int = 64  # images a step, over all devices
    seed: int = 0
    init_from: str = ""  # a trained model whose weights (the generator's average) and tokenizer, with new words behind, the run starts from; "": from nothing
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    parallel: ParallelConfig = ParallelConfig()
    log: LogConfig = LogConfig()

    @property
    def images(self) -> int:
        """The budget in images."""
        return self.steps * self.batch


POSITIVE = """
    steps batch data.threads data.objects text.length text.width text.layers model.noise model.style model.width
    model.patch model.detail model.critic_patch model.critic_widths log.metrics log.samples log.checkpoint parallel.fsdp parallel.accumulate
    parallel.processes
"""
LEAST: dict[str, int] = dict.fromkeys(POSITIVE.split(), 1) | {"text.length": 2}  # least value of a number; of the others 0. A word and the end
# most of one: of shares, and of what decides the network, as a model that is loaded may come from anywhere
SHARES: dict[str, int] = {"data.hard_negatives": 1, "optim.warmup": 1}
MOST: dict[str, int] = SHARES | {"data.size": 4096, "text.layers": 256, "model.blocks": 256, "model.critic_blocks": 256, "text.vocab": 2**20}


def _power_of_two(n: float) -> bool:
    return n >= 1 and n == int(n) and int(n) & (int(n) - 1) == 0


def check(config: Config) -> None:
    """Raises UserError for settings that contradict each other, before anything is allocated."""
    c, m = config, config.model
    for name, value in flatten(config).items():
        values = value if isinstance(value, tuple) else (value,)
        low, high = LEAST.get(name, 0), MOST.get(name, 2**16 if name.startswith(("text.", "model.")) else math.inf)
        if not all(low <= v <= high and v < math.inf for v in values if isinstance(v, int | float)):
            limit = f"a number from {low} to {high}" if math.isfinite(high) else f"at least {low}" + ", and finite" * (math.inf in values)
            raise UserError(f"--{name.replace('_', '-')} {' '.join(map(str, values))}: must be {limit}")
        if len(values) > 64:
            raise UserError(f"--{name.replace('_', '-')}: has {len(values)} values")
    if c.seed >= 2**32:
        raise UserError(f"--seed {c.seed}: must be below 2^32")
    if m.width % 4:
        raise UserError(f"--model.width {m.width}: must be a multiple of 4, the heads of its attention; multiples of 128 are fast")
    if not m.critic_blocks or not m.blocks:
        raise UserError("--model.blocks and --model.critic-blocks need at least one block")
    unit, why = (8 * m.patch, " (8 x model.patch)") if m.recipe == "residual" else (16, "")
    if not _power_of_two(c.data.size / unit):
        sizes = ", ".join(str(unit * 2**i) for i in range(1, 4))
        raise UserError(f"--data.size {c.data.size}: must be {unit}{why} times a power of two, for example {sizes}")
    if m.recipe == "residual" and not _power_of_two(c.data.size / m.critic_patch / 4):
        raise UserError(f"--model.critic-patch {m.critic_patch}: {c.data.size} px / patch is halved down to 4, so take a power of two up to {c.data.size // 4}")
    if m.recipe == "residual" and (m.patch % 2 ** len(m.detail) or m.critic_patch % 2 ** len(m.detail)):
        stages, patches = " ".join(map(str, m.detail)), f"--model.patch {m.patch} and --model.critic-patch {m.critic_patch}"
        raise UserError(f"--model.detail {stages}: each halves {patches}; take fewer, or larger patches")
    if 2 ** len(m.shrink) > c.data.size:
        raise UserError(f"--model.shrink: {len(m.shrink)} scales, each twice the one before: {c.data.size} px have {int(math.log2(c.data.size))}")
    if len(m.critic_widths) != len(m.critic_blocks):
        raise UserError(f"--model.critic-widths {m.critic_widths} and --model.critic-blocks {m.critic_blocks}: need one value a resolution each")
    sides = [4 * 2**i for i in range(int(math.log2(c.data.size / m.patch / 4)))] if m.recipe == "residual" else []
    if never := sorted(set(m.attention) - set(sides)) if sides else []:
        some = ", ".join(map(str, sides))
        raise UserError(f"--model.attention {' '.join(map(str, never))}: blocks of {c.data.size} px work on maps of sides {some}; take of these, or none")
    if not all(0 <= beta < 1 for beta in c.optim.betas):
        raise UserError(f"--optim.betas {' '.join(map(str, c.optim.betas))}: must be from 0 to below 1")
    if c.text.vocab < 300:
        raise UserError(f"--text.vocab {c.text.vocab}: needs at least 300, 256 of which are the bytes")
    if c.text.encoder == "rnn" and c.text.width % 2:
        raise UserError(f"--text.width {c.text.width}: must be even, half of it for each direction of the rnn")
    share = c.loss.penalty_share
    if not 1e-3 <= share <= 1 or abs(1 / share - round(1 / share)) > 1e-3:
        raise UserError(f"--loss.penalty-share {share}: must be 1, 1/2, 1/3, ..., 1/1000")
    if m.recipe == "dcgan" and any(c.loss.contrast):
        raise UserError("--loss.contrast needs --model.recipe residual: the baseline's discriminator has no sentence term; set it to 0 0")
    if m.recipe == "dcgan" and c.optim.muon:
        raise UserError(f"--optim.muon {c.optim.muon}: is for the trunks of --model.recipe residual, which the baseline does not have; set it to 0")
    if c.loss.diversity and c.data.size % 8:
        raise UserError(f"--loss.diversity {c.loss.diversity}: needs pictures of a multiple of 8 pixels, not --data.size {c.data.size}; or set it to 0")
    for name, share in {"shift": c.augment.shift, "cutout": c.augment.cutout}.items():
        if share >= 1:
            raise UserError(f"--augment.{name} {share}: a fraction of the picture's side, below 1")


def _folders() -> list[pathlib.Path]:
    package = pathlib.Path(__file__).parent
    return [f for f in (package / "configs", package.parent / "configs") if f.is_dir()]


def presets() -> list[str]:
    """Names of the presets, in a checkout or an installed wheel."""
    return sorted({p.stem for folder in _folders() for p in folder.glob("*.py")})


def load_preset(name: str) -> Config:
    """The configuration in `configs/NAME.py`; UserError if there is none."""
    for folder in _folders():
        path = folder / f"{name}.py"
        if name.isidentifier() and path.is_file():
            spec = importlib.util.spec_from_file_location(f"dallegan_config_{name}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return dataclasses.replace(module.config(), workdir=f"runs/{name}")
    near = difflib.get_close_matches(name, presets(), 1)
    raise UserError(f"no preset {name!r}{f'; did you mean {near[0]}?' if near else ''} Presets: {', '.join(presets())}")


def to_json(config: Config) -> str:
    """The configuration as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote; UserError where the text is something else."""
    try:
        return _build(Config, json.loads(text))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"not a dallegan configuration: {error}") from None


def _build(kind: Any, values: dict[str, Any]) -> Any:
    fields, defaults = {f.name: f for f in dataclasses.fields(kind)}, kind()
    if unknown := set(values) - set(fields):
        raise TypeError(f"unknown settings {', '.join(sorted(unknown))} (written by a newer version?)")
    made = {}
    for name, value in values.items():
        kindof, default = fields[name].type, getattr(defaults, name)
        made[name] = _build(kindof, value) if dataclasses.is_dataclass(kindof) else tuple(value) if isinstance(value, list) else value
        if not _fits(made[name], kindof, default):
            raise TypeError(f"{name} is {value!r}")
    return kind(**made)


def _fits(value: Any, kindof: Any, default: Any) -> bool:
    """Whether a value from a file is of a field's type."""
    origin, kinds = get_origin(kindof), get_args(kindof)
    if origin is Literal:
        return value in kinds
    if origin is tuple:
        some = kinds[-1] is Ellipsis or (isinstance(value, tuple) and len(value) == len(kinds))
        return isinstance(value, tuple) and some and all(type(v) in (int, kinds[0]) for v in value)
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


def flatten(config: Config) -> dict[str, Any]:
    """{"data.size": 32, ...}."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


FREE = ("workdir", "log.", "data.threads", "parallel.strategy", "parallel.fsdp", "parallel.coordinator", "parallel.process")  # beginnings


def conflicts(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ and may not change when a run resumes, {name: (old, new)}."""
    a, b = flatten(old), flatten(new)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name] and not name.startswith(FREE)}
