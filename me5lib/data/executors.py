"""Running the stages of a build: datatrove's executors for one machine, Slurm and Ray, made quiet and careful.

A stage is done when every task of it has its file in `<logs>/completions`, which datatrove writes last of all; so a
build goes on with the tasks that have none. A task's log is `<logs>/logs/task_<rank>.log`; the console gets one line a
stage, or a bar on a terminal. A task that fails stops the build after its stage, in one line that names the log.

On one machine tasks run in a pool of `concurrent.futures` and not datatrove's own, which waits for ever for a worker
that the system killed for want of memory. A worker whose build is gone ends itself, so that no two write one file.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from me5lib.io import Me5Error


class Stage(NamedTuple):
    """Steps that every one of `tasks` tasks goes through. `logs`: folder of its logs and completions."""

    name: str
    steps: list[PipelineStep]
    tasks: int
    logs: Path

    @property
    def done(self) -> int:
        """How many tasks are finished."""
        with contextlib.suppress(FileNotFoundError):
            return len(os.listdir(self.logs / "completions"))
        return 0


class _Quiet:
    """Mixed into an executor: a task writes to its log file alone."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        logger.enable("datatrove")
        try:
            with open(os.devnull, "w", encoding="utf8") as nowhere, contextlib.redirect_stderr(nowhere):
                try:
                    return super()._run_for_rank(rank, local_rank, node_rank)
                finally:
                    logger.remove()  # datatrove has added stderr again, which is about to close
        finally:
            logger.disable("datatrove")


class _Local(_Quiet, LocalPipelineExecutor):
    """datatrove's executor of one machine, over a pool that notices a dead worker."""

    def run(self) -> None:
        """Run the tasks that are not finished."""
        ranks = self.get_incomplete_ranks()
        self.save_executor_as_json()
        if self.workers == 1:
            for rank in ranks:
                _deep(self)._run_for_rank(rank)
            return
        context = multiprocessing.get_context(self.start_method)
        with ProcessPoolExecutor(min(self.workers, len(ranks)), context, _end_with, (os.getpid(),)) as pool:
            jobs = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            try:
                for job in as_completed(jobs):
                    job.result()
            except Exception:  # tasks that are at work end first, or they would meet those of the next attempt
                pool.shutdown(cancel_futures=True)
                raise
            except BaseException:  # an interrupt reached the workers too
                pool.shutdown(wait=False, cancel_futures=True)
                raise


class _Ray(_Quiet, RayPipelineExecutor):
    """datatrove's executor for Ray."""


def _deep(executor: PipelineExecutor) -> PipelineExecutor:
    from copy import deepcopy

    return deepcopy(executor)  # each task its own steps, as a pool of processes would have it


def _end_with(parent: int) -> None:
    """In a worker: end this process once the build's is gone. (Windows ends it anyway, and has no signal 0.)"""
    if os.name == "nt":
        return

    def watch() -> None:
        while _alive(parent):
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def run_local(card: str, stages: Sequence[Stage], workers: int, progress: bool = True) -> None:
    """Run the stages one after another on this machine, `workers` tasks at a time."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    for number, stage in enumerate(stages):
        if stage.done < stage.tasks:
            executor = _Local(stage.steps, stage.tasks, workers, str(stage.logs), start_method=method)
            _run(card, f"{number + 1}/{len(stages)} {stage.name}", stage, executor, progress)


def run_ray(card: str, stages: Sequence[Stage], workers: int, memory: float, progress: bool = True) -> None:
    """Run the stages one after another on the Ray cluster that this process belongs to (or a new one of this machine).

    `memory`: GB of a task. The folder of the build must be one that all nodes share.
    """
    try:
        import ray
    except ImportError:
        raise Me5Error("--executor ray needs Ray: pip install 'ray[default]'") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    for number, stage in enumerate(stages):
        if stage.done < stage.tasks:
            with unheard():
                executor = _Ray(stage.steps, stage.tasks, workers, logging_dir=str(stage.logs), mem_per_cpu_gb=memory)
            _run(card, f"{number + 1}/{len(stages)} {stage.name}", stage, executor, progress)


class Slurm(NamedTuple):
    """What `sbatch` is told. `mem`: GB a task; `more`: further options, as {"qos": "long"}."""

    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    mem: int = 4
    env_command: str = ""
    more: Mapping[str, str] = {}


def run_slurm(card: str, stages: Sequence[Stage], workers: int, slurm: Slurm) -> str:
    """Submit the stages that are not finished, each an array job that waits for the one before; the last job's id.

    Returns at once. Raises `Me5Error` where there is no `sbatch`, or it refuses.
    """
    import shutil
    import subprocess

    if not shutil.which("sbatch"):
        raise Me5Error("there is no sbatch here: start the build on a login node, or choose --executor local")
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise Me5Error("this is a task of a Slurm array: start the build on a login node")
    if not slurm.partition:
        raise Me5Error("--executor slurm needs --partition")
    before = None
    more = ({"account": slurm.account} if slurm.account else {}) | dict(slurm.more)
    for stage in stages:
        before = SlurmPipelineExecutor(
            stage.steps, stage.tasks, slurm.time, slurm.partition, mem_per_cpu_gb=slurm.mem, workers=workers, qos="",
            job_name=f"me5-{card}-{stage.name.replace(' ', '-')}", env_command=slurm.env_command or None,
            sbatch_args=more, depends=before, logging_dir=str(stage.logs),
        )  # fmt: skip
    try:
        with unheard():
            before.run()
    except subprocess.CalledProcessError as error:
        raise Me5Error(f"card {card}: sbatch refused the job (exit code {error.returncode}): see its message above"
                       ) from None
    return str(before.job_id)


def _run(card: str, title: str, stage: Stage, executor: PipelineExecutor, progress: bool) -> None:
    """Run one stage. Raises `Me5Error` naming the log of a task that is not finished after it."""
    failure: BaseException | None = None
    with _watched(f"{card} {title}", stage, progress), unheard():
        try:
            executor.run()
        except Me5Error as error:
            failure = error
        except BrokenProcessPool:
            failure = MemoryError("a worker was killed: too little memory? Try fewer --workers")
        except Exception as error:
            failure = error
    missing = executor.get_incomplete_ranks()
    if isinstance(failure, Me5Error):
        raise failure
    if missing or failure:
        log = stage.logs / "logs" / f"task_{(missing or [0])[0]:05d}.log"
        why = f" ({type(failure).__name__}: {' '.join(str(failure).split())[:200]})" if failure else ""
        raise Me5Error(f"card {card}: stage {stage.name}: {len(missing)} of {stage.tasks} tasks are not finished{why}: "
                       f"see {log}; the same command goes on from there")


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Keep datatrove's own messages off the console."""
    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


@contextlib.contextmanager
def _watched(title: str, stage: Stage, progress: bool) -> Iterator[None]:
    """A bar over the tasks on a terminal, else one line when the stage has ended."""
    from tqdm import tqdm

    start, before = time.monotonic(), stage.done
    ended = threading.Event()
    with tqdm(total=stage.tasks, initial=before, desc=title, unit="task", leave=False,
              disable=not (progress and sys.stderr.isatty())) as bar:
        def follow() -> None:
            while not ended.wait(0.5):
                bar.update(stage.done - bar.n)

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
    if progress:
        passed = time.monotonic() - start
        print(f"{title}: {stage.done} of {stage.tasks} tasks, {before} of them from before, {passed:.0f} s",
              file=sys.stderr)
