"""``python -m weightpager``: the command, where the environment's scripts aren't on the path."""

from weightpager.cli import main

if __name__ == "__main__":
    main()
