"""Segment images; see src/cocoseg/commands/predict.py, or --help."""

from cocoseg.commands.predict import main

if __name__ == "__main__":
    main()
