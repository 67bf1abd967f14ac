"""The Celery app, its queues and priorities, messages, the connection to Redis, and overrides of kombu."""
