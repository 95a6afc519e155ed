"""The front door of the clone: python -m experiments.launch --config=experiments/NAME/config.py."""

from nopr.lab import launch

if __name__ == "__main__":
    launch.run_program()
