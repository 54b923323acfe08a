"""`python -m asyncq`: the same as `asyncq`."""

from asyncq.cli import main

if __name__ == "__main__":
    main()
