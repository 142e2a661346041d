"""A page in the browser that draws captions: dallegan demo [--model NAME|DIR] [--port P]."""

import contextlib
import dataclasses
import functools
import html
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import unicodedata
import warnings
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dallegan.commands import ModelName
from dallegan.commands.save_images import SamplingOptions, write_animations, write_grid, write_images
from dallegan.errors import UserError
from dallegan.io.cli import parse
from dallegan.io.text import shown
from dallegan.sampling import DEFAULT, Model, load

MAX_PROMPT = 300  # characters
MAX_IMAGES = 16  # per request
MAX_BEST_OF = 8
MAX_WAITING = 32  # requests; beyond these the page says that it is busy
FRAMES = 16  # of the way between two captions
KEPT_ANSWERS = 20  # answers whose files stay on disk
EXAMPLES = [
    "一只棕色的大熊站在雪地里",
    "a big brown bear standing in the snow",
    "a red cat to the left of a blue house in the snow",
    "海边的一艘蓝色小船",
]
PAIRS = [
    ["a small red car in the desert", "一只棕色的大熊站在雪地里"],
    ["一只黄色的小狗坐在草地上", "a big purple fish in the sea"],
]
# the browser enlarges the images, so that a download has the pixels of the model
CSS = ".pixels img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }"
CSS += "@media (max-width: 40em) { #gallery .grid-container { grid-template-columns: 1fr 1fr !important; } }"


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw captions on a page in the browser."""

    model: ModelName = DEFAULT
    port: int = 7860  # of the page
    host: str = "127.0.0.1"  # 0.0.0.0 admits other machines; there is no password
    names: tuple[str, ...] = ()  # other host names of the page, such as a reverse proxy's
    open: bool = False  # open the page in this machine's browser


class Studio:
    """Answers the requests of the page.

    The files of the latest answers are kept in `folder`. Both methods raise UserError for requests out of
    bounds.
    """

    def __init__(self, model: Model, folder: pathlib.Path) -> None:
        self.model, self._folder, self._lock = model, folder, threading.Lock()
        self._answers: dict[tuple[object, ...], tuple[pathlib.Path, Any]] = {}  # by request
        model.sample(EXAMPLES[0], best_of=2)  # compiles, so that no visitor waits for it
        model.interpolate(EXAMPLES[0], EXAMPLES[1])

    def draw(
        self, prompt: str, n: int = 4, seed: int = 0, truncation: float = 1.0, best_of: int = 1
    ) -> tuple[list[str], str, str]:
        """Returns the files of the images, the file of a captioned sheet, and how long the drawing took."""
        prompt, options = check_prompt(prompt), sampling_options(n, seed, truncation, best_of)

        def make(out: pathlib.Path) -> tuple[list[str], str, str]:
            start = time.perf_counter()
            written = list(write_images(self.model, [prompt], out, options))
            seconds, count = time.perf_counter() - start, options.n * options.best_of
            device = jax.devices()[0].device_kind
            took = f"{count} drawn in {1000 * seconds:.0f} ms, {count / seconds:.0f} a second, on {device}"
            sheet = write_grid(self.model, written, out, options, 128)
            return [str(image.path) for image in written], str(sheet), took

        return self._answer(("draw", prompt, options), make)

    def blend(self, a: str, b: str, t: float = 0.5, seed: int = 0) -> tuple[np.ndarray, str]:
        """Returns uint8[H, W, 3] at t in [0, 1] from caption a to caption b, and the file of an animation."""
        if not is_within(t, 0, 1):
            raise UserError(f"position {t}: from 0 to 1")
        a, b, options = check_prompt(a), check_prompt(b), sampling_options(1, seed)

        def make(out: pathlib.Path) -> tuple[np.ndarray, str]:
            (film,) = write_animations(self.model, a, b, out, options, FRAMES)
            return self.model.interpolate(a, b, FRAMES, seed=options.seed), str(film.path)

        frames, film = self._answer(("blend", a, b, options), make)
        return frames[round(t * (FRAMES - 1))], film

    def _answer(self, request: tuple[object, ...], make: Callable[[pathlib.Path], Any]) -> Any:
        """Returns what `make` makes in a folder of its own, or made at an earlier request."""
        with self._lock:
            if request not in self._answers:
                if len(self._answers) >= KEPT_ANSWERS:
                    shutil.rmtree(self._answers.pop(next(iter(self._answers)))[0], ignore_errors=True)
                folder = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
                self._answers[request] = folder, make(folder)
            return self._answers[request][1]


def check_prompt(prompt: str) -> str:
    """Returns a prompt with single spaces. Raises UserError if it is no text, empty or too long.

    The limits of the page's text box do not bind requests that are sent by other means.
    """
    if prompt is not None and not isinstance(prompt, str):
        raise UserError("the prompt is not a text")
    prompt = " ".join((prompt or "").split())
    if not prompt:
        raise UserError("the prompt is empty: say what to draw")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in prompt):
        raise UserError("the prompt has control characters")
    if len(prompt) > MAX_PROMPT:
        raise UserError(f"the prompt has {len(prompt)} characters: at most {MAX_PROMPT}")
    return prompt


def is_within(value: object, low: float, high: float) -> bool:
    """Returns whether a value is a number from `low` to `high`."""
    return isinstance(value, int | float) and low <= value <= high


def sampling_options(n: int, seed: int, truncation: float = 1.0, best_of: int = 1) -> SamplingOptions:
    """Returns the options of a request. Raises UserError for numbers that the page does not offer."""
    for name, value, low, high in (
        ("images", n, 1, MAX_IMAGES),
        ("seed", seed, 0, 2**32 - 1),
        ("truncation", truncation, 0, 2),
        ("best of", best_of, 1, MAX_BEST_OF),
    ):
        if not is_within(value, low, high):
            raise UserError(f"{name} {value}: from {low} to {high}")
    return SamplingOptions(int(n), int(seed), float(truncation), int(best_of))


def import_gradio() -> Any:
    """Returns the package gradio. Raises UserError if it is not installed."""
    # gradio reads it when it is imported; the page works offline and reports to nobody
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise UserError("the demo needs the extra `demo`: pip install 'dallegan[demo]'") from None
    return gradio


class Page:
    """The parts of the page: two tabs, whose requests the studio answers one at a time."""

    def __init__(self, gradio: Any, studio: Studio) -> None:
        self.gr, self.studio = gradio, studio

    def build(self, name: str) -> Any:
        """Returns the page, a gradio.Blocks with a queue, for the model of that name."""
        gr, size = self.gr, self.studio.model.config.data.size
        with gr.Blocks(title="dallegan", analytics_enabled=False, delete_cache=(600, 3600)) as page:
            name = shown(name).replace("`", "")
            gr.Markdown(
                f"# dallegan\n`{name}`, {size} × {size} pixels: one forward pass from a sentence, Chinese or "
                "English, to a picture."
            )
            with gr.Tab("Draw 画"):
                self.draw_tab()
            with gr.Tab("Between two captions 之间"):
                self.blend_tab()
        return page.queue(max_size=MAX_WAITING, api_open=False)  # no request passes the queue by

    def draw_tab(self) -> None:
        """Adds a caption, its settings and a gallery."""
        gr, studio = self.gr, self.studio
        prompt = gr.Textbox(
            EXAMPLES[0],
            label="Caption 文字",
            max_length=MAX_PROMPT,
            elem_id="prompt",
            autofocus=True,
            submit_btn=True,
        )
        with gr.Row():
            n = gr.Slider(1, MAX_IMAGES, 4, step=1, label="Pictures 张数")
            truncation = gr.Slider(0, 1.5, 1, step=0.05, label="Truncation 截断")
            best_of = gr.Slider(1, MAX_BEST_OF, 1, step=1, label="Best of 择优")
            seed = self.seed_box()
        gallery = gr.Gallery(
            label="Pictures 图片",
            columns=4,
            height="auto",
            elem_id="gallery",
            elem_classes="pixels",
            interactive=False,
            buttons=["download"],
        )
        took = gr.Markdown(
            "Truncation below 1: more typical, less varied. Best of: the discriminator chooses from so many.",
            elem_id="took",
        )
        with gr.Row():
            dice = gr.Button("Another seed 换一批")
            sheet = gr.DownloadButton("Download as a sheet 下载")
        gr.Examples(EXAMPLES, prompt, label="Examples 例子")
        inputs, outputs = [prompt, n, seed, truncation, best_of], [gallery, sheet, took]
        self.connect(prompt.submit, studio.draw, inputs, outputs, "draw")
        new_seed = dice.click(lambda: random.randrange(2**32), None, seed, api_visibility="private")
        self.connect(new_seed.then, studio.draw, inputs, outputs)

    def blend_tab(self) -> None:
        """Adds two captions, a position between them and an image."""
        gr, studio = self.gr, self.studio
        with gr.Row():
            a = gr.Textbox(PAIRS[0][0], label="From 从", max_length=MAX_PROMPT, elem_id="from")
            b = gr.Textbox(PAIRS[0][1], label="To 到", max_length=MAX_PROMPT, elem_id="to")
            seed = self.seed_box()
        t = gr.Slider(0, 1, 0.5, step=1 / (FRAMES - 1), label="Position 位置", elem_id="position")
        image = gr.Image(
            label="Picture 图片",
            format="png",
            elem_classes="pixels",
            elem_id="between",
            height=320,
            interactive=False,
            buttons=["download"],
        )
        film = gr.DownloadButton("Download the animation 下载动画")
        gr.Examples(PAIRS, [a, b], label="Examples 例子")
        for trigger in (t.release, a.submit, b.submit, seed.submit):
            api_name = "blend" if trigger is t.release else None
            self.connect(trigger, studio.blend, [a, b, t, seed], [image, film], api_name)

    def seed_box(self) -> Any:
        """Returns a field for the seed."""
        return self.gr.Number(0, label="Seed 种子", precision=0, minimum=0, maximum=2**32 - 1)

    def connect(
        self,
        trigger: Any,
        function: Callable[..., Any],
        inputs: list[Any],
        outputs: list[Any],
        api_name: str | None = None,
    ) -> None:
        """Calls `function` at an event, one at a time for the one device. Errors show on the page."""

        @functools.wraps(function)
        def answer(*args: Any) -> Any:
            try:
                return function(*args)
            except Exception as error:  # gradio would print a traceback; its page takes a message for HTML
                if not isinstance(error, UserError):
                    warnings.warn(f"an answer failed: {type(error).__name__}: {error}", stacklevel=2)
                raise self.gr.Error(html.escape(shown(error)), print_exception=False) from None

        trigger(
            answer,
            inputs,
            outputs,
            trigger_mode="always_last",
            concurrency_id="device",
            concurrency_limit=1,
            api_name=api_name,
            api_visibility="public" if api_name else "private",
            preprocess=False,  # gradio prints a traceback for values of a wrong type; the studio checks them
        )


def main(argv: Sequence[str]) -> None:
    """Parses the command line, compiles, and serves the page until it is stopped."""
    args = parse(Args, "dallegan demo", args=argv)
    gradio = import_gradio()
    from dallegan.commands import server  # needs what comes with gradio

    if not 0 < args.port < 2**16:
        raise UserError(f"--port {args.port}: from 1 to 65535")
    bound = server.listen(args.host, args.port)  # before the model compiles, which takes longer
    with tempfile.TemporaryDirectory(prefix="dallegan-") as name, contextlib.suppress(KeyboardInterrupt):
        folder = pathlib.Path(name).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # the default is shared by all users of the machine
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder is deleted
        page = Page(gradio, Studio(load(args.model), folder)).build(args.model)
        theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
        hosts = server.hosts_of(args.host, bound)
        running = server.make_server(gradio, page, folder, hosts, args.names, css=CSS, theme=theme)
        address = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{args.port}"
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if args.open:
            webbrowser.open(address)
        running.run(sockets=[bound])
