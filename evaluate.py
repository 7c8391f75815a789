"""Score a model; see src/cocoseg/commands/evaluate.py, or --help."""

from cocoseg.commands.evaluate import main

if __name__ == "__main__":
    main()
