"""Train a segmentation model until the time is up; see src/cocoseg/commands/train.py, or --help."""

from cocoseg.commands.train import main

if __name__ == "__main__":
    main()
