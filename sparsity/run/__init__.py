"""One run, whole: a config in, a trained and evaluated network in a workdir out."""

from sparsity.run.config import RunConfig, directory_name, run_config, smoke, with_evals
from sparsity.run.engine import Engine, last_state, saved_state, saved_steps
from sparsity.run.execution import VALIDATION, evaluate, run, start_of
from sparsity.run.plan import Cost, StepPlan, cost, plan_step
from sparsity.run.topology import Machine
from sparsity.run.workdir import Outcome, Workdir, WorkdirError
