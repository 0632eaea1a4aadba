"""`python -m pocketvit`, for launchers such as `accelerate launch -m pocketvit train ...`."""

from .cli import main

if __name__ == "__main__":
    main()
