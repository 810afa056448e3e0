#!/bin/bash
# A training on a Slurm cluster. Edit this for your cluster (account, modules, container); options of sbatch win:
#   sbatch --nodes=2 --gpus-per-node=4 --time=12:00:00 configs/slurm.sh unet_mse --data.batch_size 8
# At the time limit the training stops, and the job is queued again and resumes. An epoch must take less than the limit.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Three minutes before the limit Slurm signals this script, not the training.
#SBATCH --signal=B:USR1@180
set -u
experiment=${1:?"name an experiment: sbatch configs/slurm.sh unet_mse"}
# All processes, and the job after it is queued again, write into this folder.
export PROJECT_RUN_FOLDER=${PROJECT_RUN_FOLDER:-runs/$experiment/slurm-$SLURM_JOB_ID}
resume=()
if [ -f "$PROJECT_RUN_FOLDER/config.yaml" ]; then
    resume=(--resume "$PROJECT_RUN_FOLDER")
fi
nodes=${SLURM_NNODES:-1}
gpus=${SLURM_GPUS_ON_NODE:-1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
strategy=auto
if [ $((nodes * gpus)) -gt 1 ]; then
    strategy=ddp
fi

limit=0
training=
trap 'limit=1; [ -z "$training" ] || kill -TERM "$training"' USR1
trap '[ -z "$training" ] || kill -TERM "$training"' TERM

# One launcher per node, which starts a process for each GPU, and gives them two minutes to stop.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m torch.distributed.run \
    --nnodes="$nodes" --nproc-per-node="$gpus" --max-restarts=0 --rdzv-id="$SLURM_JOB_ID" \
    --rdzv-backend=c10d --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 20000))" \
    -m project train "$experiment" --trainer.accelerator=gpu --trainer.num_nodes="$nodes" --trainer.devices="$gpus" \
    --trainer.strategy="$strategy" "${@:2}" "${resume[@]}" &
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
