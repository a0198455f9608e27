"""Measure kernels on a device, fit cost formulas, prove and serve them."""
