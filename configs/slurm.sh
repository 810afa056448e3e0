#!/bin/bash
# A training on a Slurm cluster, rendered by `python -m project slurm`, which fills in what stands between two @.
# What your cluster needs besides (account, modules, a container) goes here: #SBATCH --account=...
#SBATCH --job-name=@NAME@
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=@GPUS@
#SBATCH --cpus-per-task=@CPUS@
#SBATCH --time=@TIME@
#SBATCH --output=@FOLDER@/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Three minutes before the time is up, this script is told, not the training.
#SBATCH --signal=B:USR1@180
@OPTIONS@
set -u
cd @ROOT@ || exit 1
# All processes, and the job once it is requeued, write into this folder.
export PROJECT_RUN_FOLDER=@FOLDER@

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=()
if [ -f "$PROJECT_RUN_FOLDER/config.yaml" ]; then
    resume=(--resume "$PROJECT_RUN_FOLDER")
fi

# The training saves last.ckpt when it is told to stop. At the time limit the job is queued again, and goes on from there.
limit=0
training=
trap 'limit=1; [ -z "$training" ] || kill -TERM "$training"' USR1
trap '[ -z "$training" ] || kill -TERM "$training"' TERM

# One launcher per node, which starts a process for each GPU, and gives them two minutes to save when it is stopped.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
srun --kill-on-bad-exit=1 @PYTHON@ -m torch.distributed.run \
    --nnodes=@NODES@ --nproc-per-node=@GPUS@ --max-restarts=0 --rdzv-id="$SLURM_JOB_ID" \
    --rdzv-backend=c10d --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 20000))" \
    -m project @WORDS@ "${resume[@]}" &
training=$!
wait "$training"
status=$?
while kill -0 "$training" 2>/dev/null; do # the signal ended the waiting, not the training
    wait "$training"
    status=$?
done
if [ "$limit" = 1 ] && [ "$status" != 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
