"""`python -m qwen2_edu` is the command line of `cli.py`."""

import sys

try:
    from .cli import app
except KeyboardInterrupt:
    print("Interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    app()
