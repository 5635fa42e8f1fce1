"""How long a boot takes, in processor time, and as a ratio to a calibration loop of the same run.

    python bench/boot.py [--memory 4G] [--vcpus 8]

The image is Septum's own, so that every machine boots the same.
"""

import argparse
import time

from septum.abi.tdvf import parse_tdvf
from septum.abi.tdvf_build import synthetic_tdvf
from septum.scenarios.boot import Boot, BootRecipe
from septum.sim import RoundRobin
from septum.vmm.layout import parse_memory_size

CALIBRATION_STEPS = 5_000_000


def calibrate() -> float:
    """Processor seconds of a fixed loop."""
    start = time.process_time()
    total = 0
    for step in range(CALIBRATION_STEPS):
        total += step & 7
    return time.process_time() - start


def main() -> None:
    """Boot without checks in between, and with them at quiet points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--vcpus", type=int, default=8)
    args = parser.parse_args()
    image = parse_tdvf(synthetic_tdvf(), "septum-tdvf")
    recipe = BootRecipe(parse_memory_size(args.memory), args.vcpus, image.sha256)
    unit = calibrate()
    print(f"boot: {args.memory}, {args.vcpus} vCPUs; a calibration loop takes {unit:.2f} s")
    for check in ("end", "quiet"):
        boot = Boot(recipe, image, schedule=RoundRobin(2000), check=check)
        start = time.process_time()
        boot.run()
        spent = time.process_time() - start
        seamcalls = sum(boot.world.module.counts.values())
        print(
            f"  --check {check:<6} {spent:6.1f} s, {spent / unit:5.1f} calibration loops, "
            f"{seamcalls / spent:9,.0f} SEAMCALLs/s"
        )


if __name__ == "__main__":
    main()
