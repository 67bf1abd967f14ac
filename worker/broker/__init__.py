"""How messages travel: the Celery app, its queues and priorities, the connection to Redis, and what kombu lacks."""
