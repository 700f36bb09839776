"""What `python -m vprompt` runs, and with it `torchrun -m vprompt`."""

from vprompt.cli import main

if __name__ == "__main__":
    main()
