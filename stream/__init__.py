"""The wire and the windows: records, settings, Kafka, event-time grid, Redis window store. Never torch."""
