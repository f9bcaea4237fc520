"""How the Redis server is reached: TLS, user, password; and what its refusals mean. Knows no key."""

import ssl
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from stream.credentials import read_password, readable_files
from stream.errors import AccessError, UsageError
from stream.settings import RedisSettings


def redis_client(settings: RedisSettings) -> redis.Redis:
    """Return a client of the configured server, which connects on first use. Raises UsageError for no usable URL."""
    url = settings.url.get_secret_value()
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=3,
            # Both would be commands that an ACL user needs for nothing else.
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            **_login(settings),
            **_trust(settings, url),
        )
    except ValueError:  # its text may quote a part of the password
        raise UsageError(
            "redis.url wants redis://[user:password@]host:port/db: set it (TELLTALE_REDIS__URL) or run `telltale up`"
        ) from None


def refusal(error: redis.RedisError, operation: str, client: redis.Redis) -> AccessError | None:
    """Return what an error says about login, certificate or rights, None if it is about none of them."""
    known = client.get_connection_kwargs()
    user = known.get("username") or "default"
    where = f"Redis at {known.get('host')}:{known.get('port')}"
    if isinstance(error, AuthenticationError | AuthorizationError):
        return AccessError(f"authentication failed for user {user} at {where}: {error}")
    if isinstance(error, NoPermissionError) or "NOPERM" in str(error) or "ACL failure" in str(error):
        return AccessError(f"not authorised: user {user} at {where} lacks a right that {operation} needs: {error}")
    if isinstance(error.__cause__ or error.__context__, ssl.SSLError) and "certificate" in str(error):
        return AccessError(f"no trust between this client and {where} (redis.ca): {error}")
    return None


def _login(settings: RedisSettings) -> dict[str, Any]:
    if not settings.username:
        return {}
    return {"username": settings.username, "password": read_password(settings.password, settings.password_file)}


def _trust(settings: RedisSettings, url: str) -> dict[str, Any]:
    if urlsplit(url).scheme != "rediss":
        return {}
    files = {
        "ssl_ca_certs": ("ca", settings.ca),
        "ssl_certfile": ("certificate", settings.certificate),
        "ssl_keyfile": ("key", settings.key),
    }
    return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **readable_files("redis", files)}
