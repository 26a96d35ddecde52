"""Beyond Bricken et al. 2023: an annealing of the noise that leaves fewer dead units.

Claim: none of the paper's. It anneals linearly and finds that this kills units from sigma .8 on in reconstruction
(Fig. 31); from there on its annealed networks lose capacity. Here, at sigma 1.5 and 3: does it help to anneal for
longer, to spend more of the time at little noise (geometric), or to keep a little noise to the end?
Command: python -m launch.reproduce --study=bricken2023/gentle_annealing --workdir=runs/bricken2023
One run: python -m launch.train --config=configs/bricken2023/gentle_annealing.py:geometric/3 --workdir=runs/one
(`linear/SIGMA`, `longer/SIGMA`, `later/SIGMA`, `geometric/SIGMA`, `kept/SIGMA`, `constant/SIGMA`; `paper/geometric/3`
is the run at the paper's scale.)
Hardware: 2 CPU cores, 10 minutes (24 runs) beside the studies `annealing` and `ablations`, whose 6 linear and 6
constant runs it shares; at the paper's scale 36 runs of 78,400 or 117,600 steps on a GPU or TPU, the 6 linear ones
shared.
Expected: no number: the paper did not try it. Linear annealing is the schedule to beat.
assumed: a unit is dead at the end if no test image turns it on, without noise; all that is compared is without noise.
assumed: "longer" anneals linearly over twice the time, in a run that is longer by as much; "later" is as long a run in
which noise falls as fast as in "linear", so that what longer training does can be told from what slow annealing does.
assumed: "geometric" falls by equal factors to 1% of sigma, then to 0, in the time of "linear"; "kept" falls so to 5%
of sigma and stays there.
assumed: (embedded) reconstruction of photographs as in `annealing`: noise falls from step 6,000 to 10,500 of 12,000, to
15,000 of 16,500 in "longer", from 10,500 to 15,000 in "later"; three seeds.
assumed: (paper) CIFAR10's pixels, 10,000 units; noise falls from epoch 800 to 1,600, to 2,400 in "longer", from 1,600
to 2,400 in "later", where training ends, as in Fig. 8.
"""

from ml_collections import ConfigDict

from sparsity import recipes

EPOCH = 49  # steps of 1,024 images, at the paper's scale
SIGMAS = (1.5, 3.0)
SCHEDULES = ("linear", "longer", "later", "geometric", "kept", "constant")
ARMS = {scale: dict.fromkeys(SCHEDULES, SIGMAS) for scale in ("embedded", "paper")}
# Steps at which noise begins to fall, that its fall takes, and of the run; of "linear".
TIMES = {"embedded": (6000, 4500, 12_000), "paper": (800 * EPOCH, 800 * EPOCH, 1600 * EPOCH)}
REMOVED, KEPT = 0.01, 0.05  # of sigma, where the geometric schedules end
SEEDS = 3


def get_config(arg: str = "geometric/3") -> ConfigDict:
    """The first run of a schedule at a sigma of the paper: "[paper/]SCHEDULE/SIGMA"."""
    return _run(*recipes.bricken_arm(arg, ARMS), 0)


def _run(scale: str, schedule: str, sigma: float, seed: int) -> ConfigDict:
    start, length, steps = TIMES[scale]
    base = recipes.autoencoder_cifar10(epochs=steps // EPOCH) if scale == "paper" else recipes.autoencoder_photos()
    if schedule == "constant":
        return recipes.bricken_noise(base, sigma, seed)
    config = recipes.with_noise(base, sigma, seed)
    # Validation is under the noise of the step, as in `annealing`, but where the last evaluation would be too.
    config.evals.noise = schedule != "kept"
    if scale == "embedded":
        config.every.eval = steps // 16
    if schedule == "linear":
        return recipes.annealed(config, start, length)
    if schedule in ("longer", "later"):
        config.steps = steps + length
        when = (start, 2 * length) if schedule == "longer" else (start + length, length)
        config = recipes.annealed(config, *when)
        config.name += f"_{schedule}"
        return config
    end = KEPT if schedule == "kept" else REMOVED
    return recipes.geometrically_annealed(config, start, length, end, kept=schedule == "kept")


def sweep(scale: str) -> list[ConfigDict]:
    """Every schedule at both sigmas, by seed."""
    return [_run(scale, schedule, sigma, seed) for seed in range(SEEDS) for schedule in SCHEDULES for sigma in SIGMAS]
