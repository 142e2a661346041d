"""A page in the browser that draws captions: python -m dallegan.demo [--model NAME|DIR] [--port P]. Needs the extra `demo`."""

import dataclasses
import functools
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dallegan.commands.save_images import SamplingOptions, write_animation, write_grid, write_pictures
from dallegan.errors import UserError
from dallegan.io.cli import parse
from dallegan.sampling import DEFAULT, Model, load

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # the page works without a network, and tells nobody
try:
    import gradio as gr
except ImportError:
    gr: Any = None

LONGEST = 300  # characters of a prompt
MOST = 16  # pictures at once
BEST_OF = 8
WAITING = 32  # requests, beyond which the page says that it is busy
FRAMES = 16  # of the way between two captions
KEPT = 20  # answers whose files stay on disk
EXAMPLES = ["一只棕色的大熊站在雪地里", "a big brown bear standing in the snow", "a red cat to the left of a blue house in the snow", "海边的一艘蓝色小船"]
WAYS = [["a small red car in the desert", "一只棕色的大熊站在雪地里"], ["一只黄色的小狗坐在草地上", "a big purple fish in the sea"]]
# the browser enlarges, so that what is downloaded is what was drawn
CSS = ".pixels img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }"


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw captions on a page in the browser."""

    model: str = DEFAULT  # one that ships with the package, a run directory (RUN@best, RUN@STEP), a folder that `Model.save` wrote, gs://..., hf://org/name
    port: int = 7860  # of the page
    host: str = "127.0.0.1"  # 0.0.0.0 lets other machines in: there is no password
    open: bool = False  # open the page in the browser of this machine


class Studio:
    """What the page asks for. The files of the latest answers are kept. UserError for what is out of bounds."""

    def __init__(self, model: Model, folder: pathlib.Path) -> None:
        self.model, self._folder, self._lock = model, folder, threading.Lock()
        self._kept: dict[tuple[object, ...], tuple[pathlib.Path, Any]] = {}  # by what was asked
        model.sample(EXAMPLES[0], best_of=2)  # compiles, so that nobody waits for it
        model.interpolate(EXAMPLES[0], EXAMPLES[1])

    def draw(self, prompt: str, n: int = 4, seed: int = 0, truncation: float = 1.0, best_of: int = 1) -> tuple[list[str], str, str]:
        """The pictures' files, that of a captioned sheet, and how long it took."""
        prompt, order = checked(prompt), make_order(n, seed, truncation, best_of)

        def make(out: pathlib.Path) -> tuple[list[str], str, str]:
            start = time.perf_counter()
            written = list(write_pictures(self.model, [prompt], out, order))
            seconds, drawn = time.perf_counter() - start, order.n * order.best_of
            took = f"{drawn} drawn in {1000 * seconds:.0f} ms, {drawn / seconds:.0f} a second, on {jax.devices()[0].device_kind}"
            return [str(w.path) for w in written], str(write_grid(self.model, written, out, order, 128)), took

        return self._answer(("draw", prompt, order), make)

    def between(self, a: str, b: str, t: float = 0.5, seed: int = 0) -> tuple[np.ndarray, str]:
        """uint8[H, W, 3] at t, from 0 to 1, of the way from a caption to another, and the file of an animation of all of it."""
        if t is None or not 0 <= t <= 1:
            raise UserError(f"position {t}: from 0 to 1")
        a, b, order = checked(a), checked(b), dataclasses.replace(make_order(1, seed), format="webp")

        def make(out: pathlib.Path) -> tuple[np.ndarray, str]:
            (film,) = write_animation(self.model, a, b, out, order, FRAMES)
            return self.model.interpolate(a, b, FRAMES, seed=order.seed), str(film.path)

        way, film = self._answer(("between", a, b, order), make)
        return way[round(t * (FRAMES - 1))], film

    def _answer(self, asked: tuple[object, ...], make: Callable[[pathlib.Path], Any]) -> Any:
        """What `make` made in a folder of its own, now or before; the oldest folder goes."""
        with self._lock:
            if asked not in self._kept:
                if len(self._kept) >= KEPT:
                    shutil.rmtree(self._kept.pop(next(iter(self._kept)))[0], ignore_errors=True)
                folder = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
                self._kept[asked] = folder, make(folder)
            return self._kept[asked][1]


def checked(prompt: str) -> str:
    """A prompt without the space around it. UserError for an empty or a long one; the page's own limits do not bind who calls it by other means."""
    prompt = (prompt or "").strip()
    if not prompt:
        raise UserError("the prompt is empty: say what to draw")
    if len(prompt) > LONGEST:
        raise UserError(f"the prompt has {len(prompt)} characters: at most {LONGEST}")
    return prompt


def make_order(n: int, seed: int, truncation: float = 1.0, best_of: int = 1) -> SamplingOptions:
    """UserError for numbers that the page does not offer."""
    for name, value, low, high in (("pictures", n, 1, MOST), ("seed", seed, 0, 2**32 - 1), ("truncation", truncation, 0, 2), ("best of", best_of, 1, BEST_OF)):
        if value is None or not low <= value <= high:
            raise UserError(f"{name} {value}: from {low} to {high}")
    return SamplingOptions(int(n), int(seed), float(truncation), int(best_of))


def build(studio: Studio, name: str) -> Any:
    """The page, a gradio.Blocks."""

    def telling(function: Any) -> Any:
        """A UserError becomes a message on the page."""

        @functools.wraps(function)
        def tell(*args: Any) -> Any:
            try:
                return function(*args)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from None

        return tell

    def ask(trigger: Any, function: Any, inputs: list[Any], outputs: list[Any], api_name: str | None = None) -> None:
        """One request at a time for the one device."""
        trigger(
            telling(function), inputs, outputs, trigger_mode="always_last", concurrency_id="device", concurrency_limit=1,
            api_name=api_name, api_visibility="public" if api_name else "private",
        )  # fmt: skip

    size = studio.model.config.data.size
    with gr.Blocks(title="dallegan", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# dallegan\n`{name}`, {size} × {size} pixels: one forward pass from a sentence, Chinese or English, to a picture.")
        with gr.Tab("Draw 画"):
            prompt = gr.Textbox(EXAMPLES[0], label="Caption 文字", max_length=LONGEST, elem_id="prompt", autofocus=True, submit_btn=True)
            with gr.Row():
                n = gr.Slider(1, MOST, 4, step=1, label="Pictures 张数")
                truncation = gr.Slider(0, 1.5, 1, step=0.05, label="Truncation 截断")
                best_of = gr.Slider(1, BEST_OF, 1, step=1, label="Best of 择优")
                seed = gr.Number(0, label="Seed 种子", precision=0, minimum=0, maximum=2**32 - 1)
            gallery = gr.Gallery(
                label="Pictures 图片", columns=4, height="auto", elem_id="gallery", elem_classes="pixels", interactive=False, buttons=["download"]
            )
            took = gr.Markdown("Truncation below 1: more typical, less varied. Best of: the discriminator chooses among so many.", elem_id="took")
            with gr.Row():
                dice = gr.Button("Another seed 换一批")
                sheet = gr.DownloadButton("Download as a sheet 下载")
            gr.Examples(EXAMPLES, prompt, label="Examples 例子")
            given, shown = [prompt, n, seed, truncation, best_of], [gallery, sheet, took]
            ask(prompt.submit, studio.draw, given, shown, "draw")
            ask(dice.click(lambda: random.randrange(2**32), None, seed, api_visibility="private").then, studio.draw, given, shown)
        with gr.Tab("Between two captions 之间"):
            with gr.Row():
                a = gr.Textbox(WAYS[0][0], label="From 从", max_length=LONGEST, elem_id="from")
                b = gr.Textbox(WAYS[0][1], label="To 到", max_length=LONGEST, elem_id="to")
                start = gr.Number(0, label="Seed 种子", precision=0, minimum=0, maximum=2**32 - 1)
            t = gr.Slider(0, 1, 0.5, step=1 / (FRAMES - 1), label="Position 位置", elem_id="position")
            picture = gr.Image(
                label="Picture 图片", format="png", elem_classes="pixels", elem_id="between", height=320, interactive=False, buttons=["download"]
            )
            film = gr.DownloadButton("Download the animation 下载动画")
            gr.Examples(WAYS, [a, b], label="Examples 例子")
            for trigger in (t.release, a.submit, b.submit, start.submit):
                ask(trigger, studio.between, [a, b, t, start], [picture, film], "between" if trigger is t.release else None)
    return page.queue(max_size=WAITING, api_open=False)  # else requests by other means would pass it by


def main(argv: Sequence[str]) -> None:
    """Parses the command line, compiles, and serves until it is stopped."""
    args = parse(Args, "dallegan demo", args=argv)
    if gr is None:
        raise UserError("the demo needs the extra `demo`: pip install 'dallegan[demo]'")
    if not 0 < args.port < 2**16:
        raise UserError(f"--port {args.port}: from 1 to 65535")
    model = load(args.model)
    with tempfile.TemporaryDirectory(prefix="dallegan-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # else a folder that all users of the machine share
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes
        page = build(Studio(model, pathlib.Path(folder)), args.model)
        try:
            page.launch(
                server_name=args.host, server_port=args.port, inbrowser=args.open, share=False, ssr_mode=False, quiet=True, prevent_thread_lock=True,
                max_file_size="1kb", css=CSS, theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]), footer_links=[],
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"cannot serve on {args.host}, port {args.port}: is it taken? Choose another --port ({error})") from None
        print(f"http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
        page.block_thread()
