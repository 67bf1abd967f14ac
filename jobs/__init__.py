"""The work of layerfarm: paths and bytes in, digests out.

Nothing below this package knows the queue: it never imports celery, redis or ``worker``
(kept so by ``tests/unit/test_import_direction.py``).
"""
