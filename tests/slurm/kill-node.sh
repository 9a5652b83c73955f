#!/usr/bin/env bash
# Simulates a power cut of a virtual node: sends KILL to every process in the node's UTS namespace.
#   tests/slurm/kill-node.sh FOLDER NAME
# The processes die one after the other, but none may report the death of another to Slurm. The
# processes that would report it die first: slurmd, every slurmstepd, and the child of each srun,
# which ends srun's step when srun dies.
set -euo pipefail
folder=$1 name=$2
space=$(readlink "/proc/$(cat "$folder/slurmd.$name.pid")/ns/uts")
processes() {
  { find /proc/[0-9]*/ns/uts -maxdepth 0 -printf '%l %h\n' 2>/dev/null || true; } |
    awk -v space="$space" '$1 == space { split($2, part, "/"); print part[3] }'
}
reporters=()
for process in $(processes); do
  read -r _ program _ parent _ <"/proc/$process/stat" || continue
  case $program in
    '(slurmd)' | '(slurmstepd)') reporters+=("$process") ;;
    '(srun)') [ "$(cat "/proc/$parent/comm" || true)" != srun ] || reporters+=("$process") ;;
  esac
done 2>/dev/null
kill -9 "${reporters[@]}"
# Repeats until no process is left, because a process may start another before it is killed.
for _ in $(seq 50); do
  left=$(processes)
  # A power cut clears shared memory too.
  [ -n "$left" ] || { rm -f /dev/shm/*."$name".*; exit 0; }
  # shellcheck disable=SC2086
  kill -9 $left 2>/dev/null || true
  sleep 0.05
done
echo "processes of $name are still running: $left" >&2
exit 1
