"""Timings of fastnorm against torch's own operators; nothing here is installed."""
