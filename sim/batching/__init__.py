"""Schedulers: what the next iteration computes."""
