"""Versions, images and ports of the servers around Telltale, in one place. Knows no process and no file.

The local stack, the test containers and `docker-compose.yml` all follow these; a test compares them.
"""

KAFKA_VERSION = "4.3.1"
KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
KAFKA_ARTIFACT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka logs through SLF4J 1 and brings log4j-core: without this binding of the same log4j its log stays empty.
LOG_BINDING_ARTIFACT = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
KAFKA_PORT = 9092
KAFKA_CONTROLLER_PORT = 9093

VALKEY_VERSION = "9.1.2"
VALKEY_IMAGE = f"valkey/valkey:{VALKEY_VERSION}"
REDIS_PORT = 6379
