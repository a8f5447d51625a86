"""Certificates made for a test: an authority and what it issues, as PEM files."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from litefs.config_http import TLSConfig
from litefs.config_types import FilePath

HOUR = datetime.timedelta(hours=1)


class Authority:
    """An authority whose certificate is at ``ca``; files go below ``root``."""

    def __init__(self, root: Path, name: str = "authority") -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.ca = root / f"{name}.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key(), HOUR).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self, name: str, *, address: str = "127.0.0.1", lifetime: datetime.timedelta = HOUR
    ) -> tuple[Path, Path]:
        """(certificate, key) for servers and clients at ``address``; with a negative ``lifetime`` expired.

        Issued again under the same name, the files are replaced, each at once.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = self._builder(subject, key.public_key(), lifetime)
        for extension in (usages, names, x509.BasicConstraints(ca=False, path_length=None)):
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        files = self.root / f"{name}.crt", self.root / f"{name}.key"
        pem = serialization.Encoding.PEM
        form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        _replace(files[0], certificate.public_bytes(pem))
        _replace(files[1], key.private_bytes(pem, form, no_password))
        return files

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * HOUR)
            .not_valid_after(now + lifetime)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )


def settings(
    certificate: tuple[Path, Path] | None = None, ca: Path | None = None, *, verify_clients: bool = True
) -> TLSConfig:
    """``http.tls`` of these files."""
    cert, key = (FilePath(path) for path in certificate) if certificate is not None else (None, None)
    return TLSConfig(
        cert=cert, key=key, ca=None if ca is None else FilePath(ca), verify_clients=verify_clients
    )


def _replace(path: Path, content: bytes) -> None:
    """As those do it who renew certificates: never a file that is written in part."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    os.replace(temporary, path)
