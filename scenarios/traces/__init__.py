"""Traces of real traffic: one reader a format, all streaming, none that guesses."""
