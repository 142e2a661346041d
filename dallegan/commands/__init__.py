"""The commands of `dallegan COMMAND`, one module each, and the flags that they share."""

from typing import Annotated

import tyro

ModelName = Annotated[
    str,
    tyro.conf.arg(
        help="a shipped model's name, a run's directory (RUN@best, RUN@STEP), a folder of `Model.save`, "
        "gs://bucket/model, hf://org/name"
    ),
]
