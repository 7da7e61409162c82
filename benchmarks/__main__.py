"""All benchmarks that say how fast training is; the others are run by name."""

from benchmarks.training import main

if __name__ == "__main__":
    main()
