"""KV caches: where keys and values live, who holds them, what is evicted."""
