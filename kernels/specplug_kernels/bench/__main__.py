"""``python -m specplug_kernels.bench``."""

from specplug_kernels.bench.command import main

if __name__ == "__main__":
    main()
