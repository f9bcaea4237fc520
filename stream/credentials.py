"""Logins and certificates as settings give them: what contradicts itself, and a password that lies in a file.

Knows neither Kafka nor Redis.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from stream.errors import UsageError


def check_login(user: str, password: SecretStr, password_file: str, prefix: str) -> str | None:
    """Return what is wrong with a login, None if it is whole or absent. prefix: start of its settings' names."""
    given = bool(password.get_secret_value())
    if given and password_file:
        return f"{prefix}password and {prefix}password_file are both set: keep one"
    if user and not (given or password_file):
        return f"{prefix}username is set without a password: set {prefix}password or {prefix}password_file"
    if (given or password_file) and not user:
        return f"{prefix}password is set without {prefix}username"
    return None


def check_pair(certificate: str, key: str, prefix: str) -> str | None:
    """Return what is wrong with a client certificate, None if it is whole or absent."""
    if bool(certificate) == bool(key):
        return None
    return f"{prefix}certificate and {prefix}key want each other: set both or neither"


def refuse_nonsense(*problems: str | None) -> None:
    """Raise ValueError with the first problem, if there is any."""
    found = next((problem for problem in problems if problem), None)
    if found:
        raise ValueError(found)


def read_password(password: SecretStr, password_file: str) -> str:
    """Return the password, from its file if that is named; raise UsageError if the file can't be read or is empty.

    It is read when a client is made, so that a service started after a rotation has the new one.
    """
    if not password_file:
        return password.get_secret_value()
    try:
        found = Path(password_file).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"password file {password_file} can't be read: {why}") from None
    if not found:
        raise UsageError(f"password file {password_file} is empty")
    return found


def readable_files(section: str, files: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Return by its option each file that is named; raise UsageError that names the setting if one can't be read.

    files: by option, the setting inside its section and the path, which is empty where nothing is set.
    """
    for setting, path in files.values():
        if path:
            _require(path, f"{section}.{setting}")
    return {option: path for option, (_, path) in files.items() if path}


def _require(path: str, setting: str) -> None:
    try:
        with Path(path).open("rb"):
            return
    except OSError as error:
        raise UsageError(f"{setting} names {path}, which can't be read: {error.strerror}") from None


def flaw_of(certificate: str, key: str) -> str:
    """Return what makes a client certificate unfit whoever looks at it, as that it has expired; empty if nothing does.

    A server that refuses one seldom says why. It is shown here to a server that trusts it itself.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode, server.verify_mode = False, ssl.CERT_NONE, ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        for side in (server, client):
            side.load_cert_chain(certificate, key, password="")  # a key with a password would ask for it
        server.load_verify_locations(certificate)
        _meet(server, client)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (OSError, ValueError):
        return ""  # what the client library reads may be unknown here
    return ""


def _meet(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Let two sides greet each other without a network."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
