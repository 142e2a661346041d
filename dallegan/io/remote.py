"""Models on other machines, copied to a folder on this one.

`hf://org/name[@revision]` is a model on the Hugging Face Hub, `gs://bucket/model` is one in a bucket.
"""

import contextlib
import itertools
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

from dallegan.errors import TransientError, UserError, as_user_error
from dallegan.io.files import cache, digest, filesystem, parse_object, reading, write_atomic

# most bytes of each file of a model; nothing else is ever fetched, and nothing in them can be executed
MODEL_FILES = {"config.json": 2**20, "tokenizer.model": 2**26, "model.safetensors": 2**33}
PAGE = re.compile(  # of the Hub, for browsers
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/([\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve)/([\w.-]+))?"
)


def fetch(url: str) -> pathlib.Path:
    """Returns the folder that holds a copy of the model; files that have not changed come from the cache.

    Raises UserError if there is no such model, and TransientError if another try may succeed.
    """
    if page := PAGE.match(url.removeprefix("hf://")):
        name = f"hf://{page[1]}" + f"@{page[2]}" * bool(page[2])
        raise UserError(f"{url} is a page for browsers: the model's name is {name}")
    return from_hub(url.removeprefix("hf://")) if url.startswith("hf://") else from_bucket(url.rstrip("/"))


def hub() -> Any:
    """Returns the package huggingface_hub. Raises UserError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the Hugging Face Hub needs the extra `hub`: pip install 'dallegan[hub]'") from None
    return huggingface_hub


def from_hub(name: str) -> pathlib.Path:
    """Returns the folder of a repository's model in the Hub's own cache.

    huggingface_hub's own downloads write to paths that the server's headers name. Here nothing that a server
    says becomes part of a path, except a commit's hash. If the Hub is busy or away, the copy of an earlier
    download serves.
    """
    repository, _, revision = name.partition("@")
    package, what = hub(), f"cannot fetch hf://{name}"
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", revision or "main"):
            raise UserError(f"{what}: no revision has such a name: {revision}")
        return _download(repository, revision or "main")
    except Exception as error:  # the package's own errors, those of its transport, the disk's
        failure = error if isinstance(error, UserError) else hub_error(error, what)
    if isinstance(failure, TransientError):
        with contextlib.suppress(Exception):
            options = {"allow_patterns": list(MODEL_FILES), "local_files_only": True}
            return pathlib.Path(package.snapshot_download(repository, revision=revision or None, **options))
        failure = TransientError(f"{failure}, and there is no copy in the cache")
    raise failure from None


def _download(repository: str, revision: str) -> pathlib.Path:
    """Copies a model's files of a revision to the Hub's cache, where they are not there yet."""
    from huggingface_hub import constants

    where = f"hf://{repository}"
    about = f"{constants.ENDPOINT}/api/models/{repository}/revision/{urllib.parse.quote(revision, safe='')}"
    with _request(f"{about}?expand=sha") as response:
        commit = parse_object(b"".join(at_most(response.iter_raw(), 2**20, where))).get("sha")
    if not re.fullmatch("[0-9a-f]{40}", str(commit)):
        raise UserError(f"{where}: the server names no commit; is HF_ENDPOINT={constants.ENDPOINT} a Hub?")
    cached = pathlib.Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    folder = cached / "snapshots" / str(commit)
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        if not (folder / name).exists():
            with _request(f"{constants.ENDPOINT}/{repository}/resolve/{commit}/{name}") as response:
                if not {"content-length", "transfer-encoding"} & {*response.headers}:
                    raise UserError(f"{where}/{name}: the server does not say where the file ends")
                size = int(response.headers.get("content-length", 0))
                pieces = at_most(response.iter_raw(2**20), MODEL_FILES[name], f"{where}/{name}", size)
                write_atomic(folder / name, pieces)
    (cached / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cached / "refs" / revision, str(commit))  # where the package looks when the Hub is away
    return folder


@contextlib.contextmanager
def _request(url: str) -> Iterator[Any]:
    """Yields a response whose body is not read yet. Raises the errors of the transport, also for a status."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(library_name="dallegan") | {"Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        response.raise_for_status()
        yield response


def at_most(pieces: Iterable[bytes], most: int, what: str, size: int = 0) -> Iterator[bytes]:
    """Yields pieces of a file.

    Raises UserError if they exceed `most` bytes, or the `size` that was announced, unless that is 0.
    """
    count, most = 0, min(size or most, most)
    for piece in itertools.chain([b""], pieces):
        count += len(piece)
        if count > most or size > most:
            raise UserError(f"{what}: has more than {most:,} bytes, too many for a model")
        yield piece


def hub_error(error: Exception, what: str) -> UserError:
    """Returns the exception to raise for one of the Hub's package: one line, with what to do about it.

    The result is a TransientError if another try may succeed: the Hub is busy, fails, or cannot be reached.
    """
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status, url = getattr(response, "status_code", 0), str(getattr(response, "url", ""))
    if status == 429:
        hint = "try again later, or log in with `hf auth login`"
        return TransientError(f"{what}: the Hub asks to wait (429): {hint}")
    if isinstance(error, errors.GatedRepoError) or status in (401, 403):
        hint = "log in with `hf auth login`, and ask for access on its page"
        return UserError(f"{what}: not allowed, or no such repository ({status}): {hint}")
    if status == 404:
        missing = url.partition("/resolve/")[2].partition("/")[2]
        if missing in MODEL_FILES:
            return UserError(f"{what}: not a model of dallegan: no {missing} in it")
        hint = "check the name, or log in with `hf auth login`"
        return UserError(f"{what}: no such repository or revision, or a private one: {hint}")
    if status:
        return (UserError if status < 500 else TransientError)(f"{what}: the Hub answers {status}")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{what}: the name must be ORG/NAME")
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    # the base of the package's errors is that of its transport, which is httpx or httpx2
    if isinstance(error, (errors.HfHubHTTPError.__bases__[0], errors.OfflineModeIsEnabled)):
        return TransientError(f"{what}: the Hub cannot be reached ({reason})")
    message = f"{what}: {reason}"
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
            state = digest([url, *(str(files.ukey(f"{path}/{name}")) for name in found)])
            folder = cache() / "models" / state
            folder.mkdir(parents=True, exist_ok=True)
            for name in found:
                if not (folder / name).exists():
                    with files.open(f"{path}/{name}", "rb") as file:
                        pieces = iter(lambda file=file: file.read(2**20), b"")
                        size = files.size(f"{path}/{name}") or 0
                        write_atomic(folder / name, at_most(pieces, MODEL_FILES[name], f"{url}/{name}", size))
    except OSError as error:
        raise as_user_error(error, f"cannot fetch {url}: {error}") from None
    return folder
