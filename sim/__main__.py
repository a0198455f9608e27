"""The command line: ``python -m sim``, or ``kvtwin``."""

from sim.command import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
