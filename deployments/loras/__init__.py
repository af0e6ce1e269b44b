"""The registry of LoRAs: records in Redis, files in the object store. Neither ray nor torch."""
