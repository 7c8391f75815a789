"""Choose images and draw their label masks; see src/cocoseg/commands/prepare.py, or --help."""

from cocoseg.commands.prepare import main

if __name__ == "__main__":
    main()
