"""A sweep on Slurm as an array of jobs: lanes do not talk, so each job takes every n-th one.

    pip install submitit
    python experiments/cluster/submitit_sweep.py --out runs/grid --jobs 8 --partition gpu
    python experiments/cluster/submitit_sweep.py --out runs/grid --jobs 2 --smoke

``--smoke`` runs small jobs as processes of this machine, by the same code without Slurm. A job
that is preempted, or out of time, is queued again and goes on from its last checkpoint, lane by
lane. ``cljax sweep status OUT`` tells how far all are; the job that ends last merges the table.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


class Job:
    """What each job of the array does: its shard of the lanes."""

    def __init__(self, out: str, smoke: bool):
        self.out, self.smoke = out, smoke

    def __call__(self, index: int, count: int) -> int:
        import cljax

        if self.smoke:
            stream = cljax.streams.MNISTRotations(
                sample=True, num_tasks=2, samples_per_task=60
            ).build()
            settings = cljax.sweep.grid(alpha_init=[0.05, 0.1], alpha_lr=[0.1, 0.3])
            plan = cljax.sweep.plan("lamaml", stream, settings, seeds=2)
        else:
            recipe = cljax.recipe("lamaml", "mnist-rotations")
            recipe = recipe.replace(data_dir=os.environ["CLJAX_DATA_DIR"])
            settings = cljax.sweep.grid(
                alpha_init=[0.03, 0.05, 0.1, 0.15, 0.2], alpha_lr=[0.1, 0.2, 0.3, 0.4, 0.5]
            )
            plan = cljax.sweep.plan(recipe, None, settings, seeds=8)
        print(plan, flush=True)
        running = cljax.Running(checkpoint_every="60s", segment_seconds=10)
        return cljax.sweep.run(plan, self.out, shard=(index, count), running=running).exit_code

    def checkpoint(self, index: int, count: int):
        """Submitit's question when a job must leave: the same again, in a new job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, index, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="a folder that all jobs see")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--partition", default=None)
    parser.add_argument("--gpus", type=int, default=1, help="of each job")
    parser.add_argument("--minutes", type=int, default=60, help="of each job")
    parser.add_argument("--smoke", action="store_true", help="small jobs on this machine")
    args = parser.parse_args()
    import submitit

    logs = Path(f"{args.out}-slurm")
    executor = submitit.AutoExecutor(folder=logs, cluster="local" if args.smoke else "slurm")
    executor.update_parameters(
        timeout_min=args.minutes, gpus_per_node=0 if args.smoke else args.gpus
    )
    if args.partition is not None:
        executor.update_parameters(slurm_partition=args.partition)
    shards = range(args.jobs)
    jobs = executor.map_array(Job(args.out, args.smoke), shards, [args.jobs] * args.jobs)
    print(f"queued {len(jobs)} jobs, such as {jobs[0].job_id}: cljax sweep status {args.out}")
    if args.smoke:
        sys.exit(max(job.result() for job in jobs))


if __name__ == "__main__":
    main()
