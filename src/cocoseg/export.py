"""`python -m cocoseg.export`: write a trained model in other formats, see commands/export.py."""

from cocoseg.commands.export import main

if __name__ == "__main__":
    main()
