"""Shared by all tests: 8 virtual CPU devices, set before jax is imported, and tiny configs."""

import contextlib
import importlib.metadata
import os
import resource
import tempfile

# jaxlib 0.10 has older emitters of fusions too, which compile in half the time; 0.12 has one kind and no such flag.
EMITTERS = "xla_cpu_use_fusion_emitters"
HAS_OLDER_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
    + [f"--{EMITTERS}=false"] * HAS_OLDER_EMITTERS
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Of numpy's products: with as many workers as cores, threads of one wait, and spin, for those of the other: ten times.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Many tests run the same tiny network; it is compiled once a session, for subprocesses and workers too.
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers take that of the process that started them
    _CACHE = tempfile.TemporaryDirectory(prefix="sparsity-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import hypothesis
import jax
import pytest

from sparsity import recipes
from sparsity.run.topology import DESCRIBED

# Most programs here run for moments: to compile them well takes longer than to run them badly. This is the back end's
# effort alone; the passes over HLO, whose results some tests look at, all run. Subprocesses are not touched.
jax.config.update("jax_disable_most_optimizations", True)

# The same examples every time; no deadline, since the first one compiles.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture
def optimized():
    """Programs as users get them, for a test that trains at length."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def as_users():
    """Options of `Lowered.compile` that give the program users get, for a test of its text."""
    return {EMITTERS: True} if HAS_OLDER_EMITTERS else {}


@pytest.fixture
def full_disk():
    """full_disk(size): within it a disk that has room for `size` bytes of a file and no more."""

    @contextlib.contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def tiny_config():
    """A run of seconds: the quickstart's ViT, narrower and shorter, on one device."""
    config = recipes.vit_digits()
    config.name = "tiny"
    config.steps, config.batch = 6, 32
    config.mesh.data = 1
    config.model.d_model, config.model.layers, config.model.heads, config.model.mlp.d_ff = 16, 2, 2, 32
    config.every.record, config.every.eval, config.every.checkpoint, config.every.speed = 3, 3, 2, 2
    config.evals.names = ("accuracy", "calibration", "sparsity", "neurons", "cost")
    return config


@pytest.fixture(scope="module")
def tpu_slice():
    """tpu_slice("v5e:2x2"): described TPU chips, for compiling ahead of time: there is no TPU. Skips without libtpu."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies
    from jax.experimental.compilation_cache import compilation_cache

    # Without a TPU its programs cannot be read back from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # or the setting has no effect any more
    with pytest.MonkeyPatch.context() as patch:
        for name, value in DESCRIBED.items():
            patch.setenv(name, value)
        yield lambda name: list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def tpu_devices(tpu_slice):
    """Four TPU v5e chips."""
    return tpu_slice("v5e:2x2")
