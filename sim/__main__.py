"""The command line: ``python -m sim``, or ``kvtwin``."""

from sim.run import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
