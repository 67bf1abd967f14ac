"""Keep catalogs up to date: receive the push notifications of registries, and run what changed."""
