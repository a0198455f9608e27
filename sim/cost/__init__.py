"""Cost models: how long an engine iteration takes."""
