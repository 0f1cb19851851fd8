from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamml.errors import ModelError
from streamml.models import Bundle, Policy, new_key, open_model
from streamml.models.manifest import write_manifest

keys = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return tmp_path / "key.pem"


@pytest.fixture
def public(private: Path) -> str:
    return new_key(private)


@pytest.fixture
def signed(bundle: Bundle, private: Path, public: str) -> Bundle:
    bundle.sign(private)
    return bundle


@pytest.fixture
def policy(public: str) -> Policy:
    return Policy(trusted_keys=(public,), require_signature=True)


def refused(bundle: Bundle, policy: Policy, text: str) -> None:
    """Both ways in refuse the bundle, for this reason."""
    for way in (
        lambda: Bundle.load(bundle.path).verify(policy=policy),
        lambda: open_model(bundle.path, policy=policy),
    ):
        with pytest.raises(ModelError, match=re.escape(text)):
            way()


def test_a_signed_bundle_serves_where_a_signature_is_wanted(signed: Bundle, policy: Policy) -> None:
    Bundle.load(signed.path).verify(policy=policy)
    assert open_model(signed.path, policy=policy).score([[1], [2], [3]], 1) == {"score": [321.0]}


def test_the_signature_is_plain_ed25519_over_name_version_and_digest(signed: Bundle, public: str) -> None:
    said = json.loads((signed.path / "bundle.sig").read_text())
    message = f"streamml bundle linear:1 {signed.manifest.digest}".encode()
    assert said["key"] == public
    keys.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(said["signature"]), message)


def test_an_unsigned_bundle_is_refused_where_a_signature_is_wanted(bundle: Bundle, policy: Policy) -> None:
    refused(bundle, policy, "it is not signed, and the policy wants a signature")


def test_an_unsigned_bundle_serves_where_keys_are_trusted_but_no_signature_is_wanted(
    bundle: Bundle, public: str
) -> None:
    Bundle.load(bundle.path).verify(policy=Policy(trusted_keys=(public,)))


def test_a_bare_file_is_refused_where_a_signature_is_wanted(linear: Path, policy: Policy) -> None:
    with pytest.raises(ModelError, match="a bare file is not signed"):
        open_model(linear, policy=policy)


@pytest.mark.parametrize("require", [True, False])
def test_a_description_changed_after_signing_is_refused_though_its_digest_is_right(
    signed: Bundle, public: str, require: bool
) -> None:
    write_manifest(signed.path, msgspec.structs.replace(signed.manifest, metadata={"auc": 1.0}))
    policy = Policy(trusted_keys=(public,), require_signature=require)
    refused(signed, policy, "the signature is not of this description; the bundle was changed after it was signed")


def test_a_signature_of_another_bundle_is_refused(
    signed: Bundle, make_bundle: Callable[..., Bundle], policy: Policy, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other", version=2)
    shutil.copy(signed.path / "bundle.sig", other.path)
    refused(other, policy, "the signature is not of this description")


def test_a_file_changed_after_signing_is_refused(signed: Bundle, policy: Policy) -> None:
    path = signed.path / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    refused(signed, policy, "model.onnx was changed or cut short")


def test_a_signature_by_a_key_that_is_not_trusted_is_refused(signed: Bundle, tmp_path: Path, public: str) -> None:
    other = new_key(tmp_path / "other.pem")
    for require in (True, False):
        policy = Policy(trusted_keys=(other,), require_signature=require)
        refused(signed, policy, f"signed with the key {public[:16]}..., which is not trusted")


def test_a_signature_by_any_of_several_trusted_keys_is_taken(signed: Bundle, tmp_path: Path, public: str) -> None:
    other = new_key(tmp_path / "other.pem")
    signed.verify(policy=Policy(trusted_keys=(other, public), require_signature=True))


def test_every_cut_of_the_signature_is_refused(signed: Bundle, policy: Policy) -> None:
    path = signed.path / "bundle.sig"
    data = path.read_bytes()
    for size in range(0, len(data) - 2, 11):
        path.write_bytes(data[:size])
        refused(signed, policy, "bundle.sig is cut short or is no signature")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"signature": "00" * 64}, "the signature is not of this description"),
        ({"signature": "xyz"}, "bundle.sig is cut short or is no signature"),
        ({"signature": ""}, "the signature is not of this description"),
        ({"algorithm": "none"}, "wanted ed25519, format 1, got none, format 1"),
        ({"format": 2}, "wanted ed25519, format 1, got ed25519, format 2"),
        ({"key": "00" * 32}, "signed with the key 0000000000000000..., which is not trusted"),
        ({"more": 1}, "bundle.sig is cut short or is no signature"),
    ],
)
def test_a_forged_signature_is_refused(signed: Bundle, policy: Policy, changes: dict[str, Any], text: str) -> None:
    path = signed.path / "bundle.sig"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(signed, policy, text)


def test_trusted_keys_may_be_pem_files(signed: Bundle, private: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(private.read_bytes(), None).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "public.pem").write_bytes(key.public_bytes(serialization.Encoding.PEM, form))
    signed.verify(policy=Policy(trusted_keys=(str(tmp_path / "public.pem"),), require_signature=True))


def test_a_trusted_key_that_is_none_is_named(signed: Bundle) -> None:
    refused(signed, Policy(trusted_keys=("no such file",)), "trusted key 'no such file': wanted 64 hex digits or a PEM")


def test_a_private_key_is_readable_by_its_owner_only_and_never_written_over(private: Path, public: str) -> None:
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes()
    with pytest.raises(ModelError, match="a key is never written over"):
        new_key(private)
    assert private.read_bytes() == before


def test_a_bundle_that_was_changed_is_not_signed(bundle: Bundle, private: Path, public: str) -> None:
    (bundle.path / "golden.npz").write_bytes(b"")
    with pytest.raises(ModelError, match=re.escape("golden.npz was changed or cut short")):
        bundle.sign(private)
    assert not (bundle.path / "bundle.sig").exists()


def test_a_key_of_another_kind_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    data = key.private_bytes(encoding, form, serialization.NoEncryption())
    with pytest.raises(ModelError, match="wanted an Ed25519 key, got"):
        bundle.sign(data)
    with pytest.raises(ModelError, match="the private key can't be read"):
        bundle.sign(tmp_path / "none.pem")


def test_a_missing_package_says_what_to_install(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(ModelError, match=re.escape("pip install 'streamml[signing]'")):
        new_key(tmp_path / "new.pem")


def test_the_environment_can_want_a_signature(
    bundle: Bundle, private: Path, public: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMML_TRUSTED_KEYS", public)
    monkeypatch.setenv("STREAMML_REQUIRE_SIGNATURE", "1")
    with pytest.raises(ModelError, match="it is not signed"):
        open_model(bundle.path)
    bundle.sign(private)
    open_model(bundle.path)
