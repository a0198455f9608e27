"""Where Hydra looks for launchers."""
