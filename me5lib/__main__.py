"""`python -m me5lib` is `me5`."""

from me5lib.cli.app import app

if __name__ == "__main__":
    app()
