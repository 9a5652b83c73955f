#!/usr/bin/env bash
# Starts a real Slurm cluster of virtual nodes on this machine: one slurmctld, and one slurmd per
# node with its own host name.
#   tests/slurm/up.sh FOLDER [NODES] [GPUS per node] [seconds until a silent node is down]
# Configuration, state and logs are written to FOLDER. `. FOLDER/env` points Slurm's commands and
# Open MPI to the cluster. Partition `high` preempts `low`, whose jobs are requeued after GraceTime.
# A node counts as down after SlurmdTimeout. Needs root, slurm-wlm and munge.
#
# Each cluster numbers its jobs from another id. Late messages of an earlier cluster, which had the
# same ports, then refer to unknown jobs.
set -euo pipefail
folder=$1 nodes=${2:-4} gpus=${3:-0} silence=${4:-10}
port=${SLURM_TEST_PORT:-16817}
mkdir -p "$folder"/{state,log,spool,tmp,dev}
folder=$(cd "$folder" && pwd)

# munge signs the messages between the daemons. One munge daemon serves all clusters of a machine.
mkdir -p /run/munge /var/lib/munge /var/log/munge
chown munge:munge /run/munge /var/lib/munge /var/log/munge
chmod 755 /run/munge
[ -s /etc/munge/munge.key ] || mungekey -c 2>/dev/null || create-munge-key -f >/dev/null
munge -n 2>/dev/null | unmunge >/dev/null 2>&1 ||
  setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged --num-threads=2

last=$((nodes - 1))
{
  cat <<CONF
ClusterName=virtual
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
SlurmctldPort=$port
FirstJobId=$((1000 + $$ % 50000))
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
TmpFS=$folder/tmp/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
MpiDefault=none
ReturnToService=2
SlurmdTimeout=$silence
SlurmctldTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=600
BatchStartTimeout=10
JobRequeue=1
RebootProgram=/bin/true
SlurmdParameters=config_overrides
SwitchType=switch/none
GresTypes=gpu
PropagateResourceLimitsExcept=MEMLOCK
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CONF
  for i in $(seq 0 $last); do
    echo "NodeName=node$i NodeHostname=node$i NodeAddr=127.0.0.1 Port=$((port + 1 + i)) CPUs=16 Boards=1 SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=64000 State=UNKNOWN$([ "$gpus" = 0 ] || echo " Gres=gpu:$gpus")"
  done
  cat <<CONF
PartitionName=low Nodes=node[0-$last] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1 GraceTime=${SLURM_TEST_GRACE:-10}
PartitionName=high Nodes=node[0-$last] MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=10 PreemptMode=OFF
CONF
} >"$folder/slurm.conf"
: >"$folder/gres.conf"
if [ "$gpus" != 0 ]; then
  for i in $(seq 0 $((gpus - 1))); do [ -e "$folder/dev/nvidia$i" ] || mknod "$folder/dev/nvidia$i" c 1 3; done
  echo "NodeName=node[0-$last] Name=gpu File=$folder/dev/nvidia[0-$((gpus - 1))]" >"$folder/gres.conf"
fi
echo CgroupPlugin=cgroup/v1 >"$folder/cgroup.conf"
cat >"$folder/env" <<ENV
export SLURM_CONF=$folder/slurm.conf
# All nodes share the network interfaces of this machine, and Open MPI finds no pair that connects
# two nodes. They use the loopback interface instead.
export OMPI_MCA_btl_tcp_if_include=lo
# Several ranks share a core of this machine, so a waiting rank must yield it.
export OMPI_MCA_mpi_yield_when_idle=1
ENV
. "$folder/env"

/usr/sbin/slurmctld -c -f "$folder/slurm.conf"
for i in $(seq 0 $last); do "$(dirname "$0")/node.sh" "$folder" "node$i"; done
for _ in $(seq 200); do
  if [ "$(sinfo -h -N -p low -t idle -o %N 2>/dev/null | sort -u | wc -l)" = "$nodes" ]; then exit 0; fi
  sleep 0.1
done
echo "the cluster did not start:" >&2
sinfo -N -l >&2 || true
tail -n 20 "$folder"/log/*.log >&2
exit 1
