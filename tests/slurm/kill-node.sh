#!/usr/bin/env bash
# Takes a virtual node away as a power cut does: every process on it (by its host name's namespace)
# gets KILL.
#   tests/slurm/kill-node.sh FOLDER NAME
# Processes die one after the other here, and none may tell Slurm of another's death. So the ones
# that would do so die first: slurmd, every slurmstepd, and the child of every srun that ends
# srun's step when srun dies.
set -euo pipefail
folder=$1 name=$2
space=$(readlink "/proc/$(cat "$folder/slurmd.$name.pid")/ns/uts")
processes() {
  { find /proc/[0-9]*/ns/uts -maxdepth 0 -printf '%l %h\n' 2>/dev/null || true; } |
    awk -v space="$space" '$1 == space { split($2, part, "/"); print part[3] }'
}
tellers=()
for process in $(processes); do
  read -r _ program _ parent _ <"/proc/$process/stat" || continue
  case $program in
    '(slurmd)' | '(slurmstepd)') tellers+=("$process") ;;
    '(srun)') [ "$(cat "/proc/$parent/comm" || true)" != srun ] || tellers+=("$process") ;;
  esac
done 2>/dev/null
kill -9 "${tellers[@]}"
# Until nothing is left: a process may start another between a look and a kill.
for _ in $(seq 50); do
  left=$(processes)
  # Memory goes with the power.
  [ -n "$left" ] || { rm -f /dev/shm/*."$name".*; exit 0; }
  # shellcheck disable=SC2086
  kill -9 $left 2>/dev/null || true
  sleep 0.05
done
echo "processes of $name are left: $left" >&2
exit 1
