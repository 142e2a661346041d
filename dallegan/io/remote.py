"""Models that lie elsewhere, to a folder on this machine: `hf://org/name[@revision]` on the Hugging Face Hub, `gs://bucket/model` and the like."""

import hashlib
import pathlib
from typing import Any

from dallegan.errors import UserError
from dallegan.io.files import cache, filesystem, write_atomic

NEEDED = ("config.json", "tokenizer.model", "model.safetensors")  # nothing else is ever fetched, and nothing in these can be executed
MOST = 2**36  # bytes of a file


def fetch(address: str) -> pathlib.Path:
    """The folder that holds a copy of the model. What was fetched before and has not changed is taken from the cache. UserError where there is none."""
    return from_hub(address.removeprefix("hf://")) if address.startswith("hf://") else from_bucket(address.rstrip("/"))


def hub() -> Any:
    """The package. UserError where it is absent."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the Hugging Face Hub needs the extra `hub`: pip install 'dallegan[hub]'") from None
    return huggingface_hub


def from_hub(name: str) -> pathlib.Path:
    """A repository's model, in the Hub's own cache."""
    repository, _, revision = name.partition("@")
    try:
        folder = hub().snapshot_download(repository, revision=revision or None, allow_patterns=list(NEEDED))
    except UserError:
        raise
    except Exception as error:  # the package has dozens, and its transport others
        raise UserError(f"cannot fetch hf://{name}: {explain(error)}") from None
    return pathlib.Path(folder)


def explain(error: Exception) -> str:
    """One line for what the Hub's package raised, and what to do about it."""
    kind, said = type(error).__name__, " ".join(str(error).split())[:200]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 429:
        return "the Hub asks to wait (429): try again later, or log in with `hf auth login`"
    if kind == "GatedRepoError" or status in (401, 403):
        return f"not allowed, or no such repository ({status}): log in with `hf auth login`, and ask for access on its page"
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError") or status == 404:
        return "no such repository or revision, or a private one: check the name, or log in with `hf auth login`"
    if kind == "LocalEntryNotFoundError":
        return "the Hub cannot be reached, and there is no copy in the cache"
    if kind == "HFValidationError":
        return "the name must be ORG/NAME"
    return f"{kind}: {said}" if said else kind


def from_bucket(url: str) -> pathlib.Path:
    """A folder in a bucket, copied under a name that stands for its address and the state of its files."""
    fs, path = filesystem(url)
    try:
        files = {name: fs.info(f"{path}/{name}") for name in NEEDED if fs.exists(f"{path}/{name}")}
        if missing := [name for name in NEEDED if name not in files]:
            raise UserError(f"{url} is not a model: no {', '.join(missing)} in it; put there what `Model.save` writes, a run's directory stays on a disk")
        if big := [name for name, info in files.items() if info["size"] > MOST]:
            raise UserError(f"{url}/{big[0]} is too big for a model")
        state = repr([url, *(fs.ukey(f"{path}/{name}") for name in NEEDED)])
        folder = cache() / "models" / hashlib.sha256(state.encode()).hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
        for name, info in files.items():
            if not (folder / name).exists() or (folder / name).stat().st_size != info["size"]:
                write_atomic(folder / name, fs.cat_file(f"{path}/{name}"))
    except UserError:
        raise
    except Exception as error:  # each kind of bucket has its own
        raise UserError(f"cannot fetch {url}: {type(error).__name__}: {error}".splitlines()[0]) from None
    return folder
