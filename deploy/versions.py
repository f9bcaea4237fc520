"""Versions, images and ports of the servers around Telltale, in one place. Knows no process and no file.

The local stack, the test containers, the Dockerfile and `docker-compose.yml` all follow these; a test compares them.
"""

KAFKA_VERSION = "4.2.2"
KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
KAFKA_ARTIFACT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka logs through SLF4J 1 and brings log4j-core: without this binding of the same log4j its log stays empty.
LOG_BINDING_ARTIFACT = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"
# In containers: for other containers, for the controller itself, and for clients on the host.
KAFKA_PORT = 9092
KAFKA_CONTROLLER_PORT = 9093
KAFKA_HOST_PORT = 9094

VALKEY_VERSION = "9.1.2"
VALKEY_IMAGE = f"valkey/valkey:{VALKEY_VERSION}"
REDIS_PORT = 6379

PYTHON_IMAGE = "python:3.11-slim-bookworm"
PROMETHEUS_IMAGE = "prom/prometheus:v3.5.0"
PROMETHEUS_PORT = 9090
GRAFANA_IMAGE = "grafana/grafana:12.0.2"
GRAFANA_PORT = 3000
METRICS_PORT = 9464
