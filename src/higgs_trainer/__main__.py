"""`python -m higgs_trainer`, which `accelerate launch -m higgs_trainer train ...` needs."""

from higgs_trainer.cli import main

if __name__ == "__main__":
    main()
