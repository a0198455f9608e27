"""Traffic: synthetic workloads with known statistics, and replay of traces."""
