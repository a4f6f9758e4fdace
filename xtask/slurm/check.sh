#!/bin/bash
# What `dpar-export evaluate --emit slurm` prints, on a real Slurm of this machine: controller and node on loopback, as the user who
# calls it (root, as munge and slurmd want it). One task of the array is requeued in the middle; the merge is the dependent job.
# check.sh PROGRAM BUNDLE EXTRACTOR IMAGES FOLDER. The folder is new, and holds all of Slurm's state too.
set -euo pipefail
program=$1 bundle=$2 extractor=$3 images=$4 folder=$5
missing=
for needed in slurmctld slurmd munged sbatch scontrol; do
  command -v "$needed" > /dev/null || missing=1
done
if [ -n "$missing" ]; then
  echo "Slurm is not installed: on Debian, apt-get install --no-install-recommends slurmctld slurmd slurm-client munge" >&2
  exit 3
fi
mkdir "$folder" "$folder/state" "$folder/spool" "$folder/log" "$folder/run"
chmod 755 "$folder" "$folder/run"
host=$(hostname -s) cpus=$(nproc)
pids=()
end() {
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
  wait 2> /dev/null || true
}
trap end EXIT

head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/run/munge" --seed-file="$folder/seed" \
  --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged" > "$folder/log/munged.out" 2>&1 &
pids+=($!)
# A requeued task waits until its old credential has expired: soon, here.
cat > "$folder/slurm.conf" <<CONF
ClusterName=check
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge,cred_expire=5
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=check Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$folder/slurm.conf"
wait_for() { # seconds, what, command
  for _ in $(seq $(($1 * 5))); do
    if eval "$3"; then return; fi
    sleep 0.2
  done
  echo "$2 did not come in $1 s" >&2
  tail -n 20 "$folder"/log/* "$folder"/work/slurm-*.out >&2 || true
  exit 1
}
wait_for 20 munge '[ -S "$folder/run/munge" ]'
slurmctld -D > "$folder/log/slurmctld.out" 2>&1 &
pids+=($!)
slurmd -D > "$folder/log/slurmd.out" 2>&1 &
pids+=($!)
wait_for 60 "the node" '[ "$(sinfo -h -o %T 2> /dev/null)" = idle ]'

mkdir "$folder/work"
cd "$folder/work"
PATH=$(dirname "$program"):$PATH
evaluate=(evaluate --bundle "$bundle" --num "$images" --seed 4 --reference reference.npz --extractor "$extractor" --input-size 16
  --chunk 8 --threads 1 --kid-subset-size 10)
cp "$(dirname "$0")/../../fixtures/emoji32/real_images.npz" reference.npz
dpar-export "${evaluate[@]}" --output whole --quiet > whole.txt
dpar-export "${evaluate[@]}" --output parts --emit slurm --shards 3 > job.sh 2> emit.txt
bash job.sh --output=slurm-%j.out > submitted.txt
array=$(squeue -h -r -o %F | sort -n | head -n 1)
echo "array job $array: $(squeue -h -r -o '%i %j %T' | tr '\n' ';')"
# In the middle: some rows of the first task are there, and it runs.
wait_for 120 "the first chunk" '[ -s parts/part-1/samples/pool_3.f32 ]'
scontrol requeue "${array}_1"
echo "requeued with $(stat -c %s parts/part-1/samples/pool_3.f32) bytes of features"
wait_for 600 "the end" '[ -z "$(squeue -h)" ]'
scontrol show job -o | sed -E 's/.*(JobId=[0-9]+).*(JobName=[^ ]+).*(JobState=[^ ]+).*(Restarts=[0-9]+).*/\1 \2 \3 \4/'
if ! scontrol show job -o "${array}_1" | grep -q 'Restarts=1 '; then
  echo "no task was requeued in the middle" >&2
  exit 1
fi
cmp whole/metrics.json parts/merged/metrics.json
echo "merged = whole: $(sha256sum < parts/merged/metrics.json)"
