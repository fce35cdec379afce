"""`python -m qwen2_edu` is the command line of `cli.py`."""

from .cli import app

if __name__ == "__main__":
    app()
