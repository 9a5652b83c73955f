#!/usr/bin/env bash
# Takes a virtual node away as a power cut does: its slurmd and every process that runs on it (by its host name's namespace) get KILL.
#   tests/slurm/kill-node.sh FOLDER NAME
set -euo pipefail
folder=$1 name=$2
daemon=$(cat "$folder/slurmd.$name.pid")
space=$(readlink "/proc/$daemon/ns/uts")
kill -9 "$daemon"
# Until nothing is left: a process may start another between a look and a kill.
for _ in $(seq 50); do
  left=$(for p in /proc/[0-9]*; do [ "$(readlink "$p/ns/uts" 2>/dev/null)" = "$space" ] && echo "${p#/proc/}"; done || true)
  # Memory goes with the power.
  [ -n "$left" ] || { rm -f /dev/shm/*."$name".*; exit 0; }
  # shellcheck disable=SC2086
  kill -9 $left 2>/dev/null || true
  sleep 0.05
done
echo "processes of $name are left: $left" >&2
exit 1
