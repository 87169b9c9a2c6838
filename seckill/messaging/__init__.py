"""Kafka: records in and out. Knows orders and topics; knows nothing of transactions or of Redis."""
