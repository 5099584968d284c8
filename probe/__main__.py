"""`python -m probe` is the command `probe`."""

from probe.app.cli import main

if __name__ == "__main__":
    main()
