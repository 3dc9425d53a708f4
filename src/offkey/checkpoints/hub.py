"""Files and commits of a repository on the Hub, and errors that say why one is not there."""

import socket
import urllib.parse
import urllib.request
from pathlib import Path

from offkey.checkpoints.bundled import bundled_models
from offkey.errors import BadInput, Offline, UnknownName

__all__ = [
    "TOKENIZER_FILES",
    "commit_of",
    "from_hub",
    "has_tokenizer",
    "is_reachable",
    "local_names",
]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def from_hub(repo: str, file: str, revision: str | None = None) -> Path:
    """Path of one file of a Hub repository, from its cache or fetched.

    Raises:
        UnknownName: no such repository, or not for you.
        BadInput: the repository has no such revision or file.
        Offline: the Hub cannot be reached and the file is not in its cache.
    """
    from huggingface_hub import errors, hf_hub_download

    where = f"model {repo}"
    try:
        away = not is_reachable()
        return Path(hf_hub_download(repo, file, revision=revision, local_files_only=away))
    except errors.GatedRepoError as error:
        raise BadInput(
            "access to this repository must be granted first",
            where=where,
            mend="Ask for it on the repository's page, then log in with: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UnknownName("model", repo, local_names()) from error
    except errors.RevisionNotFoundError as error:
        raise BadInput(f"no revision {revision!r}", where=where) from error
    except errors.LocalEntryNotFoundError as error:
        raise _offline(repo) from error
    except errors.EntryNotFoundError as error:
        raise BadInput(f"the repository has no {file}", where=where) from error
    except (errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        raise _offline(repo) from error


def commit_of(repo: str, revision: str | None = None) -> str:
    """The commit that a branch or tag stands for now, so that all files come from the same one.

    Raises:
        UnknownName, BadInput, Offline: as :func:`from_hub`.
    """
    return from_hub(repo, "config.json", revision).parent.name  # snapshots/COMMIT/config.json


def has_tokenizer(repo: str, commit: str) -> bool:
    """Whether tokenizer files lie beside the weights."""
    from huggingface_hub import errors, hf_hub_download

    away = not is_reachable()
    for file in TOKENIZER_FILES:
        try:
            hf_hub_download(repo, file, revision=commit, local_files_only=away)
        except errors.EntryNotFoundError:
            continue
        return True
    return False


def is_reachable() -> bool:
    """Whether the Hub can be asked: its host name resolves here, or there is a proxy."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def local_names() -> list[str]:
    """Names that can be loaded without a network: bundled models, and folders in this one."""
    here = [path.parent.name for path in Path().glob("*/config.json")]
    return [*bundled_models(), *here]


def _offline(repo: str) -> Offline:
    bundled = ", ".join(bundled_models())
    return Offline(
        "not a folder here, and the Hub cannot be reached or has not been asked for it before",
        where=f"model {repo}",
        mend=f"Check the network, give a folder, or use a bundled model ({bundled})",
    )
