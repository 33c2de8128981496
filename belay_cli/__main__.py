"""The entry point: `belay`, and `python -m belay_cli`."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. An interrupt while it is being imported is an interrupt too."""
    try:
        from belay_cli.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
