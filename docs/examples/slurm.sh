#!/bin/bash
# Training on four nodes of eight GPUs each: sbatch slurm.sh
# A node that is lost leaves the run to the others; a job that is preempted, or out of time, is queued
# again and goes on from its last save. RUN and PHOTOS lie where all nodes see them.
#SBATCH --job-name=mobilenets
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

PHOTOS=${PHOTOS:-$HOME/photos}
RUN=${RUN:-$HOME/runs/photos}
STARTS=20

# The first node is where the others meet: without it the job ends, and is queued again.
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

export OMP_NUM_THREADS=8
# With the store shared, a node that joins later waits for an address that nobody tells it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

if srun --no-kill --kill-on-bad-exit=0 --wait=0 \
  torchrun --nnodes "1:$SLURM_NNODES" --nproc-per-node 8 --max-restarts 20 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$host:29400" \
  --rdzv-conf join_timeout=900,last_call_timeout=60 --log-dir "$RUN-logs" --redirects 3 --tee 3 \
  -m mobilenets train "$PHOTOS" --model 1.0-224 --recipe modern --set batch_size=1024 \
  --restartable --output "$RUN"; then
  exit 0
fi

if ((${SLURM_RESTART_COUNT:-0} < STARTS)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit 1
