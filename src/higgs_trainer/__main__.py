"""`higgs-trainer`, and `python -m higgs_trainer`, which `accelerate launch -m higgs_trainer train ...` needs."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C while Python still imports it ends with the same exit code as later."""
    try:
        from higgs_trainer.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
