"""Where Kafka and Redis are: as the settings say, else the local stack that is running. Starts nothing."""

from pydantic import SecretStr

from deploy.local_stack import ServerStatus, default_state_dir, status
from stream.errors import UsageError
from stream.settings import Settings


def locate(settings: Settings) -> Settings:
    """Fill in addresses that the settings leave open from the running local stack.

    Raises UsageError with the way out if nothing runs.
    """
    stack = status()
    bootstrap = settings.kafka.bootstrap or _running(stack.kafka)
    redis_url = settings.redis.url.get_secret_value() or _running(stack.redis)
    missing = [name for name, address in (("kafka.bootstrap", bootstrap), ("redis.url", redis_url)) if not address]
    if missing:
        raise UsageError(
            f"no address for {' and '.join(missing)}, and no local stack runs in {default_state_dir()}: "
            "set it (TELLTALE_KAFKA__BOOTSTRAP, TELLTALE_REDIS__URL) or run `telltale up`"
        )
    kafka = settings.kafka.model_copy(update={"bootstrap": bootstrap})
    redis = settings.redis.model_copy(update={"url": SecretStr(redis_url)})
    return settings.model_copy(update={"kafka": kafka, "redis": redis})


def _running(server: ServerStatus) -> str:
    """Return a server's address; a stopped one keeps its port in mind, but nobody answers there."""
    return server.address if server.running and server.address else ""
