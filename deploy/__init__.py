"""How it runs: local Kafka and Redis, simulator, replay, demo, images."""
