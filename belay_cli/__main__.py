"""`python -m belay_cli`."""

from belay_cli.cli import main

if __name__ == "__main__":
    main()
