"""Train in Ray Train's workers: `python deploy/ray_train.py 2 train dolly --data sample`.

The first argument is the number of workers, `--gpu` before it gives each a GPU; the rest is what
`newllm` would be given (with `--shard`, an `--out` that all workers see). Each worker starts
`newllm` as a process of its own, because signals reach only a main thread.
"""

import os
import socket
import subprocess
import sys

import ray.train
import torch.distributed as dist
from ray.train.torch import TorchTrainer


def work(config: dict[str, list[str]]) -> None:
    """What one worker does; Ray has told it who is who."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = [free.getsockname()[1]]
    dist.broadcast_object_list(port, src=0)  # the port that Ray chose is taken, by Ray
    arguments = [sys.executable, "-m", "newllm", *config["arguments"]]
    subprocess.run(arguments, env={**os.environ, "MASTER_PORT": str(port[0])}, check=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    gpu = words[:1] == ["--gpu"]
    workers, *arguments = words[gpu:]
    TorchTrainer(
        work,
        train_loop_config={"arguments": arguments},
        scaling_config=ray.train.ScalingConfig(num_workers=int(workers), use_gpu=gpu),
    ).fit()
