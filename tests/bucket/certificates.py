"""An authority and its certificate for *.googleapis.com, whose addresses are compiled into TensorFlow."""

import datetime
import ipaddress
import pathlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)
_SIGNS = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def make(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes ca.pem, which clients trust, and server.pem, a key and its certificate. Returns both paths."""
    authority, server = folder / "ca.pem", folder / "server.pem"
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    signed_by = _name("fake bucket's authority")
    root = _builder(signed_by, signed_by, authority_key)
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    # Python 3.13 and later check what RFC 5280 demands of a certificate.
    root = root.add_extension(_SIGNS, critical=True)
    root = root.add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
    authority.write_bytes(_pem(root.sign(authority_key, hashes.SHA256())))
    leaf = _builder(_name("googleapis.com"), signed_by, key)
    names = [
        x509.DNSName("*.googleapis.com"),
        x509.DNSName("googleapis.com"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    leaf = leaf.add_extension(x509.SubjectAlternativeName(names), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    leaf = leaf.add_extension(issuer, critical=False)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server.write_bytes(private + _pem(leaf.sign(authority_key, hashes.SHA256())))
    return authority, server


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - _DAY).not_valid_after(now + 30 * _DAY)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
