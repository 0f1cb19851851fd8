"""Signatures of bundles: Ed25519 over the digest of the description, which holds the SHA-256 of every file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec

from streamml.errors import ModelError
from streamml.models.manifest import Manifest
from streamml.models.policy import Policy

__all__ = ["SIGNATURE", "Signature", "check_signature", "new_key", "sign"]

SIGNATURE = "bundle.sig"
_FORMAT = 1
_HEX = re.compile(r"[0-9a-f]{64}")


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `bundle.sig` says.

    Attributes:
        key: the public key in hex.
        signature: the signature in hex.
        algorithm: always `ed25519`.
        format: version of this file's layout.
    """

    key: str
    signature: str
    algorithm: str = "ed25519"
    format: int = _FORMAT


def new_key(path: str | Path) -> str:
    """Make a key: write the private one to a PEM file that only its owner can read, return the public one in hex.

    Raises:
        ModelError: the file is there already.
    """
    keys, serialization = _cryptography()
    private = keys.Ed25519PrivateKey.generate()
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    data = private.private_bytes(encoding, form, serialization.NoEncryption())
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as exc:
        msg = f"key {path}: it can't be written ({exc.strerror}); a key is never written over, so name another file"
        raise ModelError(msg) from exc
    with os.fdopen(file, "wb") as stream:
        stream.write(data)
    return str(private.public_key().public_bytes_raw().hex())


def sign(folder: Path, manifest: Manifest, private_key: str | Path | bytes) -> Signature:
    """Sign a bundle's description and write the signature beside it.

    Args:
        folder: the folder of the bundle.
        manifest: its description.
        private_key: PEM file with the private key, or the PEM itself as bytes.

    Raises:
        ModelError: the key can't be read, or is no Ed25519 key.
    """
    keys, serialization = _cryptography()
    try:
        data = private_key if isinstance(private_key, bytes) else Path(private_key).read_bytes()
        private = serialization.load_pem_private_key(data, password=None)
    except (OSError, ValueError, TypeError) as exc:
        msg = f"signing {folder}: the private key can't be read ({exc}); wanted a PEM file, as new_key writes it"
        raise ModelError(msg) from exc
    if not isinstance(private, keys.Ed25519PrivateKey):
        msg = f"signing {folder}: wanted an Ed25519 key, got {type(private).__name__}; make one with new_key"
        raise ModelError(msg)
    made = Signature(private.public_key().public_bytes_raw().hex(), private.sign(_message(manifest)).hex())
    partial = folder / f".{SIGNATURE}.{os.getpid()}"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    partial.replace(folder / SIGNATURE)
    return made


def check_signature(where: str, folder: Path, manifest: Manifest, policy: Policy) -> None:
    """Refuse a bundle whose signature the policy does not accept.

    Without trusted keys nothing is checked. With them a signature that is there must be right and by one of them, and
    with `require_signature` there must be one.

    Raises:
        ModelError: what is wrong with the signature.
    """
    if not policy.trusted_keys:
        return
    path = folder / SIGNATURE
    if not path.is_file():
        if policy.require_signature:
            msg = f"{where}: it is not signed, and the policy wants a signature; sign it with Bundle.sign"
            raise ModelError(msg)
        return
    try:
        said = msgspec.json.decode(path.read_bytes(), type=Signature)
        signature = bytes.fromhex(said.signature)
        public = bytes.fromhex(said.key)
    except (OSError, ValueError) as exc:  # msgspec's errors are ValueErrors
        msg = f"{where}: {SIGNATURE} is cut short or is no signature ({exc}); sign the bundle again"
        raise ModelError(msg) from exc
    if (said.format, said.algorithm) != (_FORMAT, "ed25519"):
        msg = f"{where}: {SIGNATURE}: wanted ed25519, format {_FORMAT}, got {said.algorithm}, format {said.format}"
        raise ModelError(msg)
    if public not in {_public(key) for key in policy.trusted_keys}:
        msg = (
            f"{where}: signed with the key {said.key[:16]}..., which is not trusted; trust it, or sign with one that is"
        )
        raise ModelError(msg)
    keys, _ = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        keys.Ed25519PublicKey.from_public_bytes(public).verify(signature, _message(manifest))
    except InvalidSignature as exc:
        msg = f"{where}: the signature is not of this description; the bundle was changed after it was signed"
        raise ModelError(msg) from exc


def _message(manifest: Manifest) -> bytes:
    """Return what is signed; the words keep it from being taken for a signature of anything else."""
    return f"streamml bundle {manifest.name}:{manifest.version} {manifest.sealed().digest}".encode()


def _public(key: str) -> bytes:
    if _HEX.fullmatch(key.lower()):
        return bytes.fromhex(key)
    keys, serialization = _cryptography()
    try:
        public = serialization.load_pem_public_key(Path(key).read_bytes())
    except (OSError, ValueError) as exc:
        msg = f"trusted key {key!r}: wanted 64 hex digits or a PEM file with a public key ({exc})"
        raise ModelError(msg) from exc
    if not isinstance(public, keys.Ed25519PublicKey):
        msg = f"trusted key {key!r}: wanted an Ed25519 key, got {type(public).__name__}"
        raise ModelError(msg)
    return bytes(public.public_bytes_raw())


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as exc:
        msg = "signatures need cryptography, which is not installed; run: pip install 'streamml[signing]'"
        raise ModelError(msg) from exc
    return ed25519, serialization
