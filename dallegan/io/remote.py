"""Models on other machines, copied to a folder on this one.

`hf://org/name[@revision]` is a model on the Hugging Face Hub, `gs://bucket/model` is one in a bucket.
"""

import hashlib
import pathlib
from typing import Any

from dallegan.errors import TransientError, UserError, as_user_error
from dallegan.io.files import cache, filesystem, reading, write_atomic

# nothing else is ever fetched, and nothing in these files can be executed
MODEL_FILES = ("config.json", "tokenizer.model", "model.safetensors")
MAX_BYTES = 2**36  # of one file


def fetch(url: str) -> pathlib.Path:
    """Returns the folder that holds a copy of the model; files that have not changed come from the cache.

    Raises UserError if there is no such model, and TransientError if another try may succeed.
    """
    return from_hub(url.removeprefix("hf://")) if url.startswith("hf://") else from_bucket(url.rstrip("/"))


def hub() -> Any:
    """Returns the package huggingface_hub. Raises UserError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the Hugging Face Hub needs the extra `hub`: pip install 'dallegan[hub]'") from None
    return huggingface_hub


def from_hub(name: str) -> pathlib.Path:
    """Returns the folder of a repository's model in the Hub's own cache."""
    repository, _, revision = name.partition("@")
    package = hub()
    try:
        folder = package.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(MODEL_FILES)
        )
    except Exception as error:  # the package's own errors, those of its transport, the disk's
        raise hub_error(error, f"cannot fetch hf://{name}") from None
    return pathlib.Path(folder)


def hub_error(error: Exception, what: str) -> UserError:
    """Returns the exception to raise for one of the Hub's package: one line, with what to do about it.

    The result is a TransientError if another try may succeed: the Hub is busy, fails, or cannot be reached.
    """
    import httpx
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 429:
        return TransientError(
            f"{what}: the Hub asks to wait (429): try again later, or log in with `hf auth login`"
        )
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        hint = "log in with `hf auth login`, and ask for access on its page"
        return UserError(f"{what}: not allowed, or no such repository ({status}): {hint}")
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError) or status == 404:
        hint = "check the name, or log in with `hf auth login`"
        return UserError(f"{what}: no such repository or revision, or a private one: {hint}")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return TransientError(f"{what}: the Hub cannot be reached, and there is no copy in the cache")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{what}: the name must be ORG/NAME")
    message = f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    if isinstance(error, httpx.HTTPError):  # of the transport, or with another status
        return UserError(message) if status and status < 500 else TransientError(message)
    return as_user_error(error, message) if isinstance(error, OSError) else UserError(message)


def from_bucket(url: str) -> pathlib.Path:
    """Returns a folder with a model's files from a bucket. Files that have changed there are fetched anew.

    The folder is named after the state of the files, so that a copy never changes. fsspec's own file cache
    writes in place: processes that fetch one model would disturb each other, and after an error it takes half
    a file for the whole.
    """
    files, path = filesystem(url)
    try:
        with reading():
            found = [name for name in MODEL_FILES if files.exists(f"{path}/{name}")]
            if missing := [name for name in MODEL_FILES if name not in found]:
                raise UserError(
                    f"{url} is not a model: no {', '.join(missing)} in it; copy there what "
                    "`Model.save` writes (a run's directory must be on a disk)"
                )
            if large := [name for name in found if files.size(f"{path}/{name}") > MAX_BYTES]:
                raise UserError(f"{url}/{large[0]} is too large for a model")
            state = repr([url, *(files.ukey(f"{path}/{name}") for name in found)])
            folder = cache() / "models" / hashlib.sha256(state.encode()).hexdigest()[:32]
            folder.mkdir(parents=True, exist_ok=True)
            for name in found:
                if not (folder / name).exists():
                    write_atomic(folder / name, files.cat_file(f"{path}/{name}"))
    except OSError as error:
        raise as_user_error(error, f"cannot fetch {url}: {error}") from None
    return folder
