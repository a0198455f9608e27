"""kvtwin's simulator: a discrete-event twin of an LLM serving engine."""
