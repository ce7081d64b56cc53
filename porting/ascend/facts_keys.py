"""Ed25519 keys in PEM files, with the package `cryptography`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from porting.errors import DeviceUnavailable, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MOST_BYTES = 1 << 16


def private_key(path: Path) -> Ed25519PrivateKey:
    """raises: InputError for a file that holds none, or one with a password; DeviceUnavailable"""
    data = _pem(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "private", "openssl genpkey -algorithm ed25519 -out key.pem") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private", "openssl genpkey -algorithm ed25519 -out key.pem")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """raises: InputError, DeviceUnavailable"""
    data = _pem(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "public", "openssl pkey -in key.pem -pubout -out key.pub") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public", "openssl pkey -in key.pem -pubout -out key.pub")
    return key


def holds(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _pem(path: Path) -> bytes:
    if find_spec("cryptography") is None:
        raise DeviceUnavailable("keys need the package cryptography", where=str(path), next='pip install "porting[sign]"')
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES)
    except OSError as error:
        raise InputError(f"the key cannot be read: {error.strerror or error}", where=str(path)) from error


def _no_key(path: Path, kind: str, command: str) -> InputError:
    return InputError(
        f"this is no Ed25519 {kind} key in PEM, without a password", where=str(path), next=f"`{command}` makes one"
    )
