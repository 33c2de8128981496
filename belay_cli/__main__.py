"""The entry point: `belay`, and `python -m belay_cli`."""

import gc
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. An interrupt while it is being imported is an interrupt too."""
    # Importing torch makes a million objects that stay. Looking through them again and again for cycles takes a
    # tenth of a second, and there are none to find: a run ends soon, or streams through buffers made once.
    gc.disable()
    try:
        from belay_cli.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
