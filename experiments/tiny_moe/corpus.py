"""The text: Python's standard library and its manual, as two Debian packages hold them.

Both are Copyright the Python Software Foundation, under the PSF License Version 2 (the manual's examples
also under the Zero-Clause BSD License): free to use and to distribute. Code is every ``.py`` file of the
library, prose every reStructuredText source of the manual.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moesim.errors import MoesimError

PACKAGES = ("libpython3.11-stdlib", "python3.11-doc")
"""Debian 12; the model in ``weights.safetensors`` saw version 3.11.2-6+deb12u9."""

DOMAINS = {"code": "**/*.py", "prose": "**/_sources/**/*.rst.txt"}

_HELD_OUT = 16
"""One file in so many is never trained on."""


@dataclass(frozen=True)
class Corpus:
    """The text of each domain, as bytes; a file begins with a zero byte.

    Attributes:
        train, held_out: by domain, uint8 [bytes].
        digest: SHA-256 of all of it, so that two trainings can be known to have seen the same.
    """

    train: dict[str, npt.NDArray[np.uint8]]
    held_out: dict[str, npt.NDArray[np.uint8]]
    digest: str


def read_corpus(folder: Path) -> Corpus:
    """The corpus out of a folder that :func:`fetch` filled.

    Raises:
        MoesimError: a domain has no file there.
    """
    train: dict[str, npt.NDArray[np.uint8]] = {}
    held_out: dict[str, npt.NDArray[np.uint8]] = {}
    digest = hashlib.sha256()
    for domain, pattern in DOMAINS.items():
        files = sorted(file for file in folder.glob(pattern) if file.is_file() and not file.is_symlink())
        if not files:
            how = f"python -m experiments.tiny_moe fetch --text {shlex.quote(str(folder))}"
            raise MoesimError(f"holds no {domain} ({pattern}); fetch the text first: {how}", file=folder)
        parts: tuple[list[bytes], list[bytes]] = ([], [])
        for file in files:
            text = b"\0" + file.read_bytes().replace(b"\0", b"")
            # By content, so that the split does not depend on where the folder is.
            mark = hashlib.sha256(text).digest()
            digest.update(mark)
            parts[mark[0] % _HELD_OUT == 0].append(text)
        train[domain], held_out[domain] = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    return Corpus(train, held_out, digest.hexdigest())


def fetch(folder: Path) -> None:
    """Download the packages with apt and unpack them; nothing is installed.

    Raises:
        MoesimError: apt-get or dpkg-deb is missing or fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as download:
        _call(["apt-get", "download", *PACKAGES], download)
        for package in sorted(Path(download).glob("*.deb")):
            _call(["dpkg-deb", "-x", str(package), str(folder.absolute())], download)


def _call(command: list[str], cwd: str) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise MoesimError("is needed to fetch the text: run this on Debian", file=command[0]) from error
    except subprocess.CalledProcessError as error:
        raise MoesimError(f"failed: {error.stderr.strip().splitlines()[-1:]}", file=command[0]) from error
