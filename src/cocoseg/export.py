"""`python -m cocoseg.export`: write a trained model in other formats, see inference/export_cli.py."""

from cocoseg.inference.export_cli import main

if __name__ == "__main__":
    main()
